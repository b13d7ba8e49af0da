//! What waits while the store is silent, and in which order it goes.

use everstep_core::{OpId, RunId};
use everstep_store::ClaimId;
use uuid::Uuid;

use super::*;

fn key(step: u32) -> StepKey {
    let (run, claim) = (Uuid::from_u128(7), Uuid::from_u128(1));
    StepKey { run_id: RunId::from_uuid(run), step: OpId(step), attempt: 1, claim: ClaimId::from_uuid(claim) }
}

fn pulse(link: u64, step: u32, details: Option<&str>, last: bool) -> Pulse {
    Pulse { link, key: key(step), details: details.map(|said| Payload::json(said.to_owned())), last }
}

#[tokio::test]
async fn of_each_attempt_the_newest_waits_and_the_first_that_came_goes_first() {
    let pulses = Pulses::default();
    for beat in 0..10_000_u32 {
        pulses.put(pulse(1, 2 - beat % 3, Some(&beat.to_string()), false));
    }
    assert_eq!(pulses.lock().newest.len(), 3, "one of each attempt");
    assert_eq!(pulses.lock().order.len(), 3);
    let taken = pulses.take(2).await;
    assert_eq!(taken, [pulse(1, 2, Some("9999"), false), pulse(1, 1, Some("9997"), false)]);
    // Whoever comes again has to wait behind the one that was left.
    pulses.put(pulse(1, 2, None, false));
    assert_eq!(pulses.take(500).await, [pulse(1, 0, Some("9998"), false), pulse(1, 2, None, false)]);
}

#[tokio::test]
async fn nothing_that_was_said_is_lost_with_the_older_one() {
    let pulses = Pulses::default();
    pulses.put(pulse(1, 1, Some("17"), true));
    // Its worker has come back meanwhile, and says only that it lives.
    pulses.put(pulse(2, 1, None, false));
    assert_eq!(pulses.take(500).await, [pulse(2, 1, Some("17"), true)]);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_one_hears_of_it() {
    let pulses = Arc::new(Pulses::default());
    let taking = tokio::spawn({
        let pulses = Arc::clone(&pulses);
        async move { pulses.take(500).await }
    });
    tokio::task::yield_now().await;
    pulses.put(pulse(1, 1, None, false));
    assert_eq!(taking.await.unwrap(), [pulse(1, 1, None, false)]);
}
