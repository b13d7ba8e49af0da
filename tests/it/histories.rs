//! Histories that each release recorded of the examples, replayed by the code of today for ever. They are added to and
//! never edited: what does not fit any more would block somebody's run.

use everstep::testing::Replayer;
use everstep_example_patterns::changed;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/histories");

#[test]
fn what_every_release_recorded_is_still_followed() -> anyhow::Result<()> {
    let replayer = Replayer::new().register(changed::WORKFLOW, changed::v2);
    let mut releases = 0;
    for release in std::fs::read_dir(FOLDER)? {
        replayer.check_dir(release?.path())?;
        releases += 1;
    }
    assert!(releases > 0, "an empty folder proves nothing");
    Ok(())
}
