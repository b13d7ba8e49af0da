//! A node between a worker and a store that the test plays: who is given what, and who hears what of it.

use everstep_core::{
    Actor, CommandId, Event, NodeId, QueuedOptions, RunStarted, SessionId, StepScheduled, WorkerInfo,
};
use everstep_dispatch::{Delivery, HintQueue, TaskHint};
use everstep_store::{ClaimId, ClaimRow, StepClaims, Verdict};
use uuid::Uuid;

use super::*;
use crate::node::{Input, NodeConfig};
use crate::{Hello, StepOffer, WorkerIn};

mod asks;
mod claims;
mod hints;
mod undecided;

const LINK: u64 = 1;

struct Bench {
    node: Node,
    now: Timestamp,
    out: Vec<Output>,
}

fn run() -> RunId {
    RunId::from_uuid(Uuid::from_u128(77))
}

fn queue() -> QueueKey {
    QueueKey { namespace: "default".to_owned(), task_queue: "q".to_owned() }
}

fn event(seq: u64, body: EventBody) -> Event {
    let command_id = CommandId::from_uuid(Uuid::from_u128(5));
    Event { seq, at: Timestamp::from_micros(0), epoch: 0, command_id, actor: Actor::System, body }
}

fn started(namespace: &str) -> RunStarted {
    RunStarted { namespace: namespace.to_owned(), task_queue: "q".to_owned(), ..RunStarted::default() }
}

fn scheduled(step: u32) -> Event {
    let options = QueuedOptions { task_queue: "q".to_owned(), ..QueuedOptions::default() };
    let input = Payload::json("4");
    let scheduled = StepScheduled { step: OpId(step), name: "work".to_owned(), input, options };
    event(u64::from(step) + 1, EventBody::StepScheduled(Box::new(scheduled)))
}

/// A run that has scheduled so many steps.
fn history(namespace: &str, steps: u32) -> Vec<Event> {
    let start = event(1, EventBody::RunStarted(Box::new(started(namespace))));
    std::iter::once(start).chain((1..=steps).map(scheduled)).collect()
}

fn key(step: u32, claim: u128) -> StepKey {
    StepKey { run_id: run(), step: OpId(step), attempt: 1, claim: ClaimId::from_uuid(Uuid::from_u128(claim)) }
}

fn claim(key: StepKey) -> StepClaim {
    let task = StepTask {
        step: key.step,
        name: "work".to_owned(),
        attempt: key.attempt,
        queue: queue(),
        priority: 3,
        scheduled: u64::from(key.step.0) + 1,
        visible_at: Timestamp::from_micros(0),
        start_by: None,
        close_by: None,
        start_to_close: None,
        heartbeat: None,
        canceled: false,
    };
    StepClaim {
        run: key.run_id,
        claim: key.claim,
        task,
        details: Payload::default(),
        event: scheduled(key.step.0),
        start: started("default"),
    }
}

fn completed() -> StepSaid {
    StepSaid::Ended(StepEnd::Completed(Payload::json("8")), Duration::ZERO)
}

fn failed() -> StepSaid {
    StepSaid::Ended(StepEnd::Failed(everstep_core::Failure::new("Broken", "m")), Duration::ZERO)
}

impl Bench {
    fn new() -> Self {
        let config = NodeConfig {
            node_id: NodeId::from_uuid(Uuid::from_u128(1)),
            lease: Duration::from_secs(10),
            shared: false,
            hints_shared: false,
            relays: false,
            seed: 3,
        };
        Self { node: Node::new(config), now: Timestamp::from_micros(1_000_000), out: Vec::new() }
    }

    /// With a worker of two slots.
    fn with_worker() -> Self {
        let mut bench = Self::new();
        bench.connect(None, Vec::new());
        bench
    }

    fn connect(&mut self, resume: Option<SessionId>, held: Vec<StepKey>) {
        self.connect_as(LINK, resume, held);
    }

    fn connect_as(&mut self, link: u64, resume: Option<SessionId>, held: Vec<StepKey>) {
        let offer = StepOffer { types: vec!["work".to_owned()], slots: 2, per_second: 0.0, held };
        let hello = Hello {
            namespace: "default".to_owned(),
            task_queues: vec!["q".to_owned()],
            worker: WorkerInfo { identity: "w".to_owned(), build_id: "b".to_owned() },
            steps: Some(offer),
            resume,
            ..Hello::default()
        };
        self.step(Input::Connect { link, hello: Box::new(hello) });
        self.step(Input::SessionOpened { link, until: Ok(Some(Timestamp::MAX)) });
    }

    fn step(&mut self, input: Input) {
        self.node.step(input, self.now, &mut self.out);
    }

    fn steps(&mut self, input: StepsIn) {
        self.step(Input::Steps(input));
    }

    fn says(&mut self, message: WorkerIn) {
        self.step(Input::FromWorker { link: LINK, message });
    }

    fn said(&mut self, key: StepKey, said: StepSaid, details: Option<Payload>) {
        self.says(WorkerIn::StepSaid { key, said, details });
    }

    fn claimed(&mut self, max: usize, keys: &[StepKey]) {
        let claims = Ok(StepClaims { claims: keys.iter().map(|key| claim(*key)).collect(), again: None });
        self.steps(StepsIn::Claimed { link: LINK, queue: queue(), max, claims });
    }

    /// What the node wanted since the last look, in a few words.
    fn wants(&mut self) -> Vec<String> {
        let words = |output: Output| match output {
            Output::Steps(StepsOut::Claim { max, .. }) => Some(format!("claim {max}")),
            Output::Steps(StepsOut::LetGo { key, deferred, .. }) => {
                Some(format!("{} {}", if deferred { "defer" } else { "return" }, key.step))
            }
            Output::Steps(StepsOut::Beat { key, last, .. }) => {
                Some(format!("{} {}", if last { "last beat" } else { "beat" }, key.step))
            }
            Output::Steps(StepsOut::Find { .. }) => Some("find".to_owned()),
            Output::Steps(StepsOut::WaitingAt { at, .. }) => Some(format!("wait until {}", at.as_micros())),
            Output::Load { .. } => Some("load".to_owned()),
            Output::Append { append, .. } => {
                let kinds: Vec<&str> = append.run.events.iter().map(|e| e.body.kind()).collect();
                Some(kinds.join(" "))
            }
            Output::ToWorker { message, .. } => match message {
                WorkerOut::StepTask(given) => Some(format!("give {} {}", given.key.step, given.key.attempt)),
                WorkerOut::StepCancel { step, gone, .. } => {
                    Some(format!("{} {step}", if gone { "gone" } else { "cancel" }))
                }
                WorkerOut::StepAsk(key) => Some(format!("ask {}", key.step)),
                WorkerOut::StepAck { key, result } => {
                    Some(format!("ack {} {}", key.step, if result.is_ok() { "ok" } else { "refused" }))
                }
                _ => None,
            },
            _ => None,
        };
        self.out.drain(..).filter_map(words).collect()
    }

    fn loads(&mut self, history: Vec<Event>) {
        self.step(Input::Loaded { run: run(), after: 0, events: Ok(history) });
    }

    fn commits(&mut self) {
        let ticket = self.out.iter().rev().find_map(|output| match output {
            Output::Append { ticket, .. } => Some(*ticket),
            _ => None,
        });
        self.step(Input::Appended { ticket: ticket.unwrap(), verdict: Verdict::Committed });
    }

    fn row(&self, key: StepKey, claimed_at: i64, canceled: bool) -> ClaimRow {
        let session = *self.node.links.keys().next().unwrap();
        ClaimRow {
            session,
            key: claim_of(&key),
            attempt: key.attempt,
            claimed_at: Timestamp::from_micros(claimed_at),
            canceled,
        }
    }

    fn found(&mut self, rows: Vec<ClaimRow>) {
        let sessions = self.node.links.keys().copied().collect();
        let since = self.now;
        self.steps(StepsIn::Found { sessions, since, rows: Ok(rows) });
    }
}

#[test]
fn a_worker_with_room_is_given_what_waits_until_its_slots_are_taken() {
    let mut bench = Bench::with_worker();
    assert_eq!(bench.wants(), ["claim 2"]);
    bench.claimed(2, &[key(1, 1), key(2, 1)]);
    assert_eq!(bench.wants(), ["give #1 1", "give #2 1"]);
    bench.steps(StepsIn::Waiting(queue()));
    assert!(bench.wants().is_empty(), "it has no room");
}

#[test]
fn an_end_is_acknowledged_when_it_is_durable_and_makes_room() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[key(1, 1), key(2, 1)]);
    bench.wants();
    bench.said(key(1, 1), completed(), None);
    assert_eq!(bench.wants(), ["load"]);
    bench.loads(history("default", 2));
    let ticket = bench.out.iter().any(|o| matches!(o, Output::Append { .. }));
    assert!(ticket);
    bench.commits();
    assert_eq!(bench.wants(), ["StepCompleted", "ack #1 ok", "claim 1"]);
    // The same end again, from a worker that has not heard: nothing follows, and it hears.
    bench.said(key(1, 1), completed(), None);
    let mut ended = history("default", 2);
    let (step, name, attempt) = (OpId(1), "work".to_owned(), 1);
    let result = Payload::json("8");
    ended.push(event(4, EventBody::StepCompleted { step, name, attempt, elapsed: Duration::ZERO, result }));
    bench.loads(ended);
    bench.step(Input::Loaded { run: run(), after: 4, events: Ok(Vec::new()) });
    assert_eq!(bench.wants(), ["load", "load", "ack #1 ok"]);
}

#[test]
fn how_far_a_failed_attempt_was_is_kept_before_its_failure() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[key(1, 1)]);
    bench.wants();
    bench.said(key(1, 1), failed(), Some(Payload::json("17")));
    assert_eq!(bench.wants(), ["last beat #1"]);
    // An older beat's answer does not end it.
    bench.steps(StepsIn::Beaten { link: LINK, key: key(1, 1), last: false, answer: Ok(BeatAnswer::Gone) });
    assert!(bench.wants().is_empty());
    bench.steps(StepsIn::Beaten { link: LINK, key: key(1, 1), last: true, answer: Ok(BeatAnswer::Going) });
    bench.loads(history("default", 1));
    bench.commits();
    let wants = bench.wants();
    assert!(wants.contains(&"StepFailed".to_owned()) && wants.contains(&"ack #1 ok".to_owned()), "{wants:?}");
}

#[test]
fn an_end_that_cannot_be_recorded_is_a_failure_for_good() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[key(1, 1)]);
    bench.wants();
    let details = Payload::json("1".repeat(3 << 20));
    let failure = everstep_core::Failure { details, ..everstep_core::Failure::new("Broken", "m") };
    bench.said(key(1, 1), StepSaid::Ended(StepEnd::Failed(failure), Duration::ZERO), None);
    bench.loads(history("default", 1));
    bench.step(Input::Loaded { run: run(), after: 3, events: Ok(Vec::new()) });
    let kind = bench.out.iter().find_map(|output| match output {
        Output::Append { append, .. } => append.run.events.iter().find_map(|event| match &event.body {
            EventBody::StepFailed { failure, retry_at: None, .. } => Some(failure.kind.clone()),
            _ => None,
        }),
        _ => None,
    });
    assert_eq!(kind.as_deref(), Some("PayloadTooLarge"));
}

#[test]
fn a_worker_cannot_end_steps_of_another_namespace() {
    let mut bench = Bench::with_worker();
    bench.wants();
    bench.said(key(1, 1), completed(), None);
    bench.loads(history("other", 1));
    // Looked at twice: what is known here might have been old.
    bench.step(Input::Loaded { run: run(), after: 2, events: Ok(Vec::new()) });
    assert_eq!(bench.wants(), ["load", "load", "ack #1 refused"]);
}

#[test]
fn what_is_claimed_for_a_worker_that_has_gone_is_returned() {
    let mut bench = Bench::with_worker();
    bench.step(Input::Disconnected { link: LINK });
    bench.wants();
    bench.claimed(2, &[key(1, 1)]);
    assert_eq!(bench.wants(), ["return #1"]);
}

#[test]
fn a_claim_without_an_answer_is_tried_again_and_what_it_did_is_made_up_for() {
    let mut bench = Bench::with_worker();
    bench.wants();
    let claims = Err(store::Error::Unavailable("gone".to_owned()));
    bench.steps(StepsIn::Claimed { link: LINK, queue: queue(), max: 2, claims });
    assert_eq!(bench.wants(), ["wait until 2000000"]);
    bench.steps(StepsIn::Look);
    assert_eq!(bench.wants(), ["find"]);
    bench.now = Timestamp::from_micros(7_000_000);
    let row = bench.row(key(1, 1), 1_000_000, false);
    bench.found(vec![row]);
    assert_eq!(bench.wants(), ["ask #1"], "it may run it by way of another node");
    let young = bench.row(key(2, 1), 6_900_000, false);
    bench.found(vec![young]);
    assert!(bench.wants().is_empty(), "it may be on its way to its worker");
}

#[test]
fn a_return_that_the_store_does_not_take_is_asked_for_again() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[key(1, 1)]);
    bench.wants();
    bench.said(key(1, 1), StepSaid::Returned, None);
    assert_eq!(bench.wants(), ["return #1"]);
    let done = Err(store::Error::Unavailable("gone".to_owned()));
    bench.steps(StepsIn::LetGo { link: LINK, key: key(1, 1), deferred: false, done });
    bench.wants();
    bench.now = Timestamp::from_micros(8_000_000);
    bench.steps(StepsIn::Look);
    assert_eq!(bench.wants(), ["find"]);
    let row = bench.row(key(1, 1), 1_000_000, false);
    bench.found(vec![row]);
    assert_eq!(bench.wants(), ["ask #1"]);
}

#[test]
fn a_node_among_others_looks_for_itself_whatever_they_were_told() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[]);
    bench.wants();
    bench.steps(StepsIn::Look);
    assert!(bench.wants().is_empty(), "alone, it hears of everything");
    bench.node.config.shared = true;
    bench.steps(StepsIn::Look);
    assert_eq!(bench.wants(), ["claim 2"]);
}

#[test]
fn an_instant_that_comes_too_early_by_another_clock_comes_again() {
    let mut bench = Bench::with_worker();
    let again = Some(Timestamp::from_micros(3_000_000));
    let claims = Ok(StepClaims { claims: Vec::new(), again });
    bench.steps(StepsIn::Claimed { link: LINK, queue: queue(), max: 2, claims });
    assert!(bench.wants().contains(&"wait until 3000000".to_owned()));
    bench.now = Timestamp::from_micros(2_999_999);
    bench.steps(StepsIn::Waiting(queue()));
    assert!(bench.wants().contains(&"wait until 3000000".to_owned()));
}

#[test]
fn the_look_finds_what_is_canceled_and_what_is_gone() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[key(1, 1), key(2, 1)]);
    bench.now = Timestamp::from_micros(2_000_000);
    bench.wants();
    let row = bench.row(key(1, 1), 1_000_000, true);
    bench.found(vec![row]);
    assert_eq!(bench.wants(), ["cancel #1", "gone #2", "claim 1"]);
    bench.found(vec![row]);
    assert!(bench.wants().is_empty(), "it has been told");
    bench.says(WorkerIn::StepBeat { key: key(2, 1), details: None });
    assert_eq!(bench.wants(), ["gone #2"], "it has not heard");
    bench.says(WorkerIn::StepBeat { key: key(1, 1), details: None });
    assert_eq!(bench.wants(), ["beat #1"]);
    bench.steps(StepsIn::Beaten { link: LINK, key: key(1, 1), last: false, answer: Ok(BeatAnswer::Gone) });
    assert_eq!(bench.wants(), ["gone #1"]);
}

#[test]
fn one_that_comes_back_goes_on_with_what_is_its_own_and_nothing_else() {
    let session = SessionId::from_uuid(Uuid::from_u128(3));
    let mut bench = Bench::new();
    bench.connect(Some(session), vec![key(1, 1), key(2, 1)]);
    assert_eq!(bench.wants(), ["find"]);
    // It says at once how one of them ended.
    bench.said(key(1, 1), completed(), None);
    assert!(bench.wants().is_empty());
    let rows = vec![bench.row(key(1, 1), 0, false), bench.row(key(3, 2), 0, false)];
    bench.found(rows);
    assert_eq!(bench.wants(), ["ask #3", "load", "gone #2", "claim 1"]);
    bench.said(key(3, 2), StepSaid::Returned, None);
    assert_eq!(bench.wants(), ["return #3"]);
}

#[test]
fn a_deferred_attempt_takes_no_slot_once_that_is_durable() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[key(1, 1), key(2, 1)]);
    bench.wants();
    bench.said(key(1, 1), StepSaid::Deferred, None);
    assert_eq!(bench.wants(), ["defer #1"]);
    bench.steps(StepsIn::LetGo { link: LINK, key: key(1, 1), deferred: true, done: Ok(true) });
    assert_eq!(bench.wants(), ["ack #1 ok", "claim 1"]);
    bench.said(key(2, 1), StepSaid::Deferred, None);
    bench.steps(StepsIn::LetGo { link: LINK, key: key(2, 1), deferred: true, done: Ok(false) });
    assert_eq!(bench.wants(), ["defer #2", "ack #2 refused"]);
}

/// They may run different steps: what is left of the one's says nothing of the other's.
#[test]
fn a_queue_that_is_dry_for_one_worker_is_not_for_another() {
    let mut bench = Bench::with_worker();
    bench.connect_as(2, None, Vec::new());
    assert_eq!(bench.wants(), ["claim 2", "claim 2"]);
    let claims = Ok(StepClaims { claims: vec![claim(key(1, 1)), claim(key(2, 1))], again: None });
    bench.steps(StepsIn::Claimed { link: 2, queue: queue(), max: 2, claims });
    bench.claimed(2, &[]);
    bench.wants();
    let message = WorkerIn::StepSaid { key: key(1, 1), said: StepSaid::Deferred, details: None };
    bench.step(Input::FromWorker { link: 2, message });
    bench.steps(StepsIn::LetGo { link: 2, key: key(1, 1), deferred: true, done: Ok(true) });
    assert_eq!(bench.wants(), ["defer #1", "ack #1 ok", "claim 1"]);
}

#[test]
fn a_worker_that_leaves_is_given_nothing_more() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[]);
    bench.wants();
    bench.says(WorkerIn::Draining);
    bench.steps(StepsIn::Waiting(queue()));
    assert!(bench.wants().is_empty());
}

#[test]
fn a_hint_and_a_due_step_lead_to_a_claim() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[]);
    bench.wants();
    let hint = TaskHint::new(run(), HintQueue::steps(queue()));
    let deliveries = vec![Delivery { hint, token: 1, attempt: 1 }];
    bench.step(Input::Delivered { queue: HintQueue::steps(queue()), deliveries });
    assert_eq!(bench.wants(), ["claim 2"]);
    bench.claimed(2, &[]);
    let attempt = AttemptKey { run: run(), step: OpId(1), attempt: 1 };
    bench.steps(StepsIn::Due(vec![(attempt, Due::Visible(queue()))]));
    assert_eq!(bench.wants(), ["claim 2"]);
    bench.steps(StepsIn::Due(vec![(attempt, Due::Timeout(StepTimeout::Heartbeat))]));
    assert_eq!(bench.wants(), ["load"]);
}
