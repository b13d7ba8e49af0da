//! Hints: what is pulled, and which go on to other nodes.

use super::*;

impl Bench {
    /// A worker that has workflow type "flow" and step "work", on a node among others.
    fn among_others() -> Self {
        let mut bench = Self::new();
        bench.node.config.hints_shared = true;
        let offer = StepOffer { types: vec!["work".to_owned()], slots: 2, per_second: 0.0, held: Vec::new() };
        let hello = Hello {
            namespace: "default".to_owned(),
            task_queues: vec!["q".to_owned()],
            workflow_types: vec!["flow".to_owned()],
            run_slots: 1,
            worker: WorkerInfo { identity: "w".to_owned(), build_id: "b".to_owned() },
            steps: Some(offer),
            ..Hello::default()
        };
        bench.step(Input::Connect { link: LINK, hello: Box::new(hello) });
        bench.step(Input::SessionOpened { link: LINK, until: Ok(Some(Timestamp::MAX)) });
        bench
    }

    /// What came of hints, in a few words.
    fn hinted(&mut self, place: HintQueue, hints: Vec<TaskHint>) -> Vec<String> {
        self.out.clear();
        let deliver = |(n, hint)| Delivery { hint, token: n, attempt: 1 };
        let deliveries = (1..).zip(hints).map(deliver).collect();
        self.step(Input::Delivered { queue: place, deliveries });
        let words = |output: Output| match output {
            Output::Ack(token) => Some(format!("ack {token}")),
            Output::Publish(hint) => Some(format!("publish {} {}", hint.needs, hint.passes)),
            Output::Pull { queue, max } => Some(format!("pull {:?} {max}", queue.kind)),
            Output::Steps(StepsOut::Claim { max, .. }) => Some(format!("claim {max}")),
            Output::Load { .. } => Some("load".to_owned()),
            _ => None,
        };
        self.out.drain(..).filter_map(words).collect()
    }

    /// The pulls that went out since the last look.
    fn pulls(&mut self) -> Vec<String> {
        let pull = |output: Output| match output {
            Output::Pull { queue, max } => Some(format!("{:?} {max}", queue.kind)),
            _ => None,
        };
        self.out.drain(..).filter_map(pull).collect()
    }
}

fn needs(place: &HintQueue, needs: &str, passes: u32) -> TaskHint {
    TaskHint { needs: needs.to_owned(), passes, ..TaskHint::new(run(), place.clone()) }
}

#[test]
fn a_hint_that_no_worker_here_can_follow_goes_on_at_once() {
    let mut bench = Bench::among_others();
    let (runs, steps) = (HintQueue::runs(queue()), HintQueue::steps(queue()));
    let foreign = bench.hinted(runs.clone(), vec![needs(&runs, "other", 0)]);
    assert_eq!(foreign, ["ack 1", "publish other 1", "pull Run 1"]);
    assert_eq!(bench.hinted(runs.clone(), vec![needs(&runs, "flow", 3)]), ["load", "pull Run 1"]);
    let pinned = |build_id: &str| TaskHint { build_id: build_id.to_owned(), ..needs(&runs, "flow", 0) };
    let foreign = bench.hinted(runs.clone(), vec![pinned("c")]);
    assert_eq!(foreign, ["ack 1", "publish flow 1", "pull Run 1"], "it belongs to another build");
    assert_eq!(bench.hinted(runs.clone(), vec![pinned("b")]), ["pull Run 1"], "its run is being read");
    let of_both = vec![needs(&steps, "other", 2), needs(&steps, "work", 0), needs(&steps, "other", 0)];
    // The claim that its coming made is under way, and has all its room.
    let mixed = bench.hinted(steps.clone(), of_both);
    assert_eq!(mixed, ["ack 1", "ack 2", "ack 3", "publish work 0", "publish other 3"]);
    bench.claimed(2, &[]);
    let unknown = bench.hinted(steps.clone(), vec![needs(&steps, "", 0)]);
    assert_eq!(unknown, ["ack 1", "claim 2"], "of a node that did not say");
}

#[test]
fn a_hint_does_not_go_round_for_ever() {
    let mut bench = Bench::among_others();
    let steps = HintQueue::steps(queue());
    bench.claimed(2, &[]);
    let last = bench.hinted(steps.clone(), vec![needs(&steps, "other", 15)]);
    assert_eq!(last, ["ack 1", "publish other 16", "pull Step 2"]);
    assert_eq!(bench.hinted(steps.clone(), vec![needs(&steps, "other", 16)]), ["ack 1", "pull Step 2"]);
    bench.says(WorkerIn::Limits { slots: 0, per_second: 0.0 });
    let held_back = bench.hinted(steps.clone(), vec![needs(&steps, "work", 0)]);
    assert_eq!(held_back, ["ack 1", "publish work 1"], "its worker takes nothing now");
    bench.node.config.hints_shared = false;
    bench.says(WorkerIn::Limits { slots: 2, per_second: 0.0 });
    bench.claimed(2, &[]);
    assert_eq!(bench.hinted(steps.clone(), vec![needs(&steps, "other", 0)]), ["ack 1", "claim 2"]);
}

#[test]
fn a_node_that_is_leaving_leaves_hints_to_others() {
    let mut bench = Bench::among_others();
    let (runs, steps) = (HintQueue::runs(queue()), HintQueue::steps(queue()));
    bench.claimed(2, &[]);
    bench.step(Input::Drain);
    assert_eq!(bench.hinted(runs.clone(), vec![needs(&runs, "flow", 0)]), ["ack 1", "publish flow 0"]);
    assert_eq!(bench.hinted(steps.clone(), vec![needs(&steps, "work", 0)]), ["ack 1", "publish work 0"]);
}

#[test]
fn a_queue_is_pulled_from_again_whenever_there_is_room() {
    let mut bench = Bench::with_worker();
    assert!(bench.pulls().is_empty(), "its claim under way has all slots");
    bench.claimed(2, &[key(1, 1)]);
    assert_eq!(bench.pulls(), ["Step 1"]);
    bench.claimed(1, &[key(2, 1)]);
    bench.step(Input::Delivered { queue: HintQueue::steps(queue()), deliveries: Vec::new() });
    assert!(bench.pulls().is_empty(), "it is full, and the pull is answered");
    bench.says(WorkerIn::StepBeat { key: key(1, 1), details: None });
    assert!(bench.pulls().is_empty());
    bench.steps(StepsIn::Beaten { link: LINK, key: key(1, 1), last: false, answer: Ok(BeatAnswer::Gone) });
    assert_eq!(bench.pulls(), ["Step 1"], "its room came without a hint");
    bench.says(WorkerIn::Limits { slots: 3, per_second: 0.0 });
    assert!(bench.pulls().is_empty(), "one at a time");
}

#[test]
fn nothing_is_kept_of_queues_that_nobody_serves() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[]);
    assert_eq!(bench.pulls(), ["Step 2"]);
    bench.step(Input::Disconnected { link: LINK });
    bench.step(Input::Delivered { queue: HintQueue::steps(queue()), deliveries: Vec::new() });
    assert!(bench.pulls().is_empty());
    bench.connect_as(2, None, Vec::new());
    bench.steps(StepsIn::Claimed { link: 2, queue: queue(), max: 2, claims: Ok(StepClaims::default()) });
    assert_eq!(bench.pulls(), ["Step 2"], "it is served again");
}
