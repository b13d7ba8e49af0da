//! What a worker can take, by its slots and by its rate.

use uuid::Uuid;

use super::*;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_micros(1_000 * millis)
}

fn queue(name: &str) -> QueueKey {
    QueueKey { namespace: "default".to_owned(), task_queue: name.to_owned() }
}

fn work(slots: u32, per_second: f64) -> Work {
    let types = vec!["work".to_owned()];
    Work::new(StepOffer { types, slots, per_second, held: Vec::new() }, false, at(0))
}

fn key(step: u32) -> StepKey {
    StepKey {
        run_id: RunId::from_uuid(Uuid::from_u128(7)),
        step: OpId(step),
        attempt: 1,
        claim: everstep_store::ClaimId::from_uuid(Uuid::from_u128(1)),
    }
}

fn hold(work: &mut Work, step: u32) {
    let key = key(step);
    work.hold((key.run_id, key.step), Held::new(key, queue("a"), at(0)));
}

#[test]
fn slots_are_kept_for_claims_under_way() {
    let mut work = work(3, 0.0);
    assert_eq!(work.reserve(&queue("a"), at(0)), (3, None));
    assert_eq!(work.reserve(&queue("b"), at(0)), (0, None), "all are spoken for");
    assert!(!work.reserved(&queue("a"), 3, 1));
    hold(&mut work, 1);
    assert_eq!(work.reserve(&queue("b"), at(0)), (2, None));
    assert!(work.release(StepKey { attempt: 2, ..key(1) }).is_none(), "that is another attempt");
    assert!(work.release(key(1)).is_some());
    assert_eq!(work.room(at(0)), 1);
    work.close();
    assert_eq!(work.room(at(0)), 0);
}

#[test]
fn what_comes_during_a_claim_is_looked_for_after_it() {
    let mut work = work(3, 0.0);
    assert_eq!(work.reserve(&queue("a"), at(0)).0, 3);
    assert_eq!(work.reserve(&queue("a"), at(0)).0, 0);
    work.poke(&queue("a"));
    assert!(work.reserved(&queue("a"), 3, 0), "something has come since");
    assert_eq!(work.reserve(&queue("a"), at(0)).0, 3);
    assert!(!work.reserved(&queue("a"), 3, 0));
}

#[test]
fn the_rate_lets_through_what_it_says_and_says_when_to_come_again() {
    let mut work = work(100, 2.0);
    assert_eq!(work.reserve(&queue("a"), at(0)).0, 2, "as many as in a quiet second");
    work.reserved(&queue("a"), 2, 1);
    assert_eq!(work.room(at(0)), 1, "what was not taken may begin");
    assert_eq!(work.reserve(&queue("a"), at(0)).0, 1);
    work.reserved(&queue("a"), 1, 1);
    let (none, again) = work.reserve(&queue("a"), at(0));
    let again = again.unwrap();
    assert_eq!(none, 0);
    assert!(again >= at(500) && again <= at(501), "{again}");
    assert_eq!(work.reserve(&queue("a"), at(100)), (0, None), "that was said already");
    assert_eq!(work.reserve(&queue("a"), again).0, 1);
    work.reserved(&queue("a"), 1, 1);
    work.limit(100, 0.0, again);
    assert_eq!(work.reserve(&queue("a"), again).0, CLAIM_MAX, "the rest with the next claim");
}

#[test]
fn a_rate_next_to_nothing_is_as_good_as_never() {
    let mut work = work(100, f64::from_bits(1));
    assert_eq!(work.reserve(&queue("a"), at(0)).0, 1);
    work.reserved(&queue("a"), 1, 1);
    assert_eq!(work.reserve(&queue("a"), at(0)), (0, Some(Timestamp::MAX)));
    // The other end does not overflow either.
    work.limit(100, f64::MAX, at(1));
    assert_eq!(work.reserve(&queue("b"), at(10_000)).0, CLAIM_MAX);
}

#[test]
fn one_that_comes_back_gets_nothing_before_it_is_known_what_it_holds() {
    let types = vec!["work".to_owned()];
    let offer = StepOffer { types, slots: 5, per_second: 0.0, held: vec![key(1)] };
    let mut work = Work::new(offer, true, at(0));
    assert!(work.is_resuming() && work.room(at(0)) == 0);
    assert!(work.keep_early(key(1), &StepSaid::Deferred, None));
    let (held, early) = work.resume();
    assert_eq!((held, early.len()), (vec![key(1)], 1));
    assert!(!work.keep_early(key(1), &StepSaid::Deferred, None));
    assert_eq!(work.room(at(0)), 5);
}
