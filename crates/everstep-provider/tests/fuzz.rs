//! A cache whose files anybody may have written: an entry or nothing, never a panic.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use bolero::{check, produce};
use everstep_provider::{Completion, FileCache, cache_key};

/// Each of them writes a file.
const ITERATIONS: usize = 2_000;

struct Kept {
    folder: tempfile::TempDir,
    cache: FileCache,
    key: String,
    /// What the file of the key holds.
    good: Vec<u8>,
}

fn kept() -> Result<Kept, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let cache = FileCache::open(folder.path())?;
    let key = cache_key(&["a"]);
    let completion = Completion { text: "yes".to_owned(), ..Completion::default() };
    cache.put(&key, &completion, Duration::from_secs(3_600))?;
    assert_eq!(cache.get(&key)?, Some(completion));
    let good = std::fs::read(folder.path().join(&key))?;
    Ok(Kept { folder, cache, key, good })
}

#[test]
fn cache_files() {
    let kept = match kept() {
        Ok(kept) => AssertUnwindSafe(kept),
        Err(error) => panic!("{error}"),
    };
    let edits = produce::<Vec<(u8, u8)>>().with().len(0..=6_usize);
    check!().with_iterations(ITERATIONS).with_generator(edits).for_each(|edits| {
        let Kept { folder, cache, key, good } = &*kept;
        let mut bytes = good.clone();
        for (at, value) in edits {
            let at = usize::from(*at) % bytes.len();
            bytes[at] = *value;
        }
        let written = std::fs::write(folder.path().join(key), &bytes);
        assert!(written.is_ok() && cache.get::<Completion>(key).is_ok());
    });
}
