//! Many workers of one queue: how many of them ask the store at one time, and who comes next.

use super::*;

impl Bench {
    /// So many workers, by stream from 1 on, each with two slots, in whose queue is nothing yet; then something comes.
    fn with_workers(count: u64) -> Self {
        let mut bench = Self::new();
        (1..=count).for_each(|link| bench.connect_as(link, None, Vec::new()));
        loop {
            let claims = bench.claims();
            if claims.is_empty() {
                break;
            }
            claims.iter().for_each(|&link| bench.finds(link, &[]));
        }
        bench.steps(StepsIn::Waiting(queue()));
        bench
    }

    /// The streams that are claimed for since the last look.
    fn claims(&mut self) -> Vec<u64> {
        let link = |output: Output| match output {
            Output::Steps(StepsOut::Claim { link, .. }) => Some(link),
            _ => None,
        };
        self.out.drain(..).filter_map(link).collect()
    }

    fn answers(&mut self, link: u64, claims: Result<StepClaims, store::Error>) {
        self.steps(StepsIn::Claimed { link, queue: queue(), max: 2, claims });
    }

    fn finds(&mut self, link: u64, keys: &[StepKey]) {
        let claims = keys.iter().map(|key| claim(*key)).collect();
        self.answers(link, Ok(StepClaims { claims, again: None }));
    }

    fn is_held_back(&mut self, link: u64, keys: &[StepKey], until: i64) {
        let claims = keys.iter().map(|key| claim(*key)).collect();
        self.answers(link, Ok(StepClaims { claims, again: Some(Timestamp::from_micros(until)) }));
    }
}

#[test]
fn a_few_ask_at_one_time_and_everybody_has_a_turn() {
    let mut bench = Bench::with_workers(10);
    assert_eq!(bench.claims(), [1, 2, 3, 4]);
    bench.steps(StepsIn::Waiting(queue()));
    assert!(bench.claims().is_empty(), "whoever waits does so once");
    for link in 1..=6 {
        bench.finds(link, &[]);
        assert_eq!(bench.claims(), [link + 4]);
    }
    // The hint came while the first four were at it: they look again, behind the others.
    bench.finds(7, &[]);
    assert_eq!(bench.claims(), [1]);
}

#[test]
fn whoever_could_take_more_waits_behind_the_others() {
    let mut bench = Bench::with_workers(5);
    bench.claims();
    // It asked for two, got them, has given one of them back at once, and might get another.
    bench.finds(1, &[key(1, 1), key(2, 1)]);
    assert_eq!(bench.claims(), [5]);
    bench.step(Input::Disconnected { link: 3 });
    for link in [2, 3, 4, 5] {
        bench.finds(link, &[]);
    }
    assert!(bench.claims().is_empty());
    assert!(bench.node.steps.lines.is_empty(), "nothing is kept of a queue in which all is said");
}

#[test]
fn a_queue_that_its_limits_hold_back_is_asked_by_one_at_a_time() {
    let mut bench = Bench::with_workers(10);
    assert_eq!(bench.claims(), [1, 2, 3, 4]);
    bench.is_held_back(1, &[key(1, 1)], 2_000_000);
    (2..=4).for_each(|link| bench.is_held_back(link, &[], 2_000_000));
    assert!(bench.claims().is_empty(), "what one is refused the others are refused too");
    // An attempt ends: whoever asks first gets the place, and the next one hears that there is no other.
    let key = key(1, 1);
    bench.steps(StepsIn::LetGo { link: 1, key, deferred: true, done: Ok(true) });
    assert_eq!(bench.claims(), [5], "each time it is another one's turn");
    bench.is_held_back(5, &[super::key(2, 1)], 2_000_000);
    assert_eq!(bench.claims(), [6]);
    bench.is_held_back(6, &[], 2_000_000);
    assert!(bench.claims().is_empty());
    bench.now = Timestamp::from_micros(2_000_000);
    bench.steps(StepsIn::Waiting(queue()));
    assert_eq!(bench.claims(), [7], "the instant has come: all are asked again, one by one");
    bench.now = Timestamp::from_micros(100_000_000);
    bench.finds(7, &[]);
    assert_eq!(bench.claims(), [8, 9, 10, 1], "the limits have not been met with for long");
}

#[test]
fn a_store_that_does_not_answer_is_asked_by_a_few_only() {
    let mut bench = Bench::with_workers(10);
    assert_eq!(bench.claims(), [1, 2, 3, 4]);
    for link in 1..=4 {
        bench.answers(link, Err(store::Error::Unavailable("gone".to_owned())));
    }
    assert_eq!(bench.wants(), ["wait until 2000000"; 4]);
    bench.now = Timestamp::from_micros(2_000_000);
    bench.steps(StepsIn::Waiting(queue()));
    assert_eq!(bench.claims(), [1, 2, 3, 4]);
}
