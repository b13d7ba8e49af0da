//! A node whose store has no room: what its clients are told, and what becomes of the rest. No seed, no faults
//! but this one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration as StdDuration;

use everstep_core::{
    CommandBody, CommandId, ConflictPolicy, Duration, NodeId, Payload, ReusePolicy, RunId, StartRun,
    Timestamp, TraceContext,
};
use everstep_engine::Error as EngineError;
use everstep_engine::node::{Input, Node, NodeConfig, Output};
use everstep_store::{Error, MemoryStore, Verdict};
use uuid::Uuid;

/// Tries behind which a client hears of it.
const TRIES: usize = 8;
/// More of them than this node needs for anything here.
const TRIES_MAX: usize = 40;

/// A node, its store, and who asked it what.
struct Place {
    node: Node,
    store: MemoryStore,
    now: Arc<AtomicI64>,
    /// What the next appends fail with; the last one goes on.
    failing: VecDeque<Error>,
    /// Pauses before the appends so far.
    pauses: Vec<StdDuration>,
    /// An append that was tried so often that it is left waiting.
    waiting: Option<Output>,
    told: Vec<(u64, Result<(), EngineError>)>,
}

fn no_room() -> Error {
    Error::Exhausted("sim".to_owned())
}

impl Place {
    /// With a run that nobody works on, and that times out after 10 s.
    fn new() -> (Self, RunId) {
        let now = Arc::new(AtomicI64::new(1_000_000));
        let clock = Arc::clone(&now);
        let store = MemoryStore::new(move || Timestamp::from_micros(clock.load(Ordering::Relaxed)));
        let node_id = NodeId::from_uuid(Uuid::from_u128(1));
        let config = NodeConfig {
            node_id,
            lease: Duration::from_secs(10),
            shared: false,
            hints_shared: false,
            relays: false,
            seed: 1,
        };
        let mut place = Self {
            node: Node::new(config),
            store,
            now,
            failing: VecDeque::new(),
            pauses: Vec::new(),
            waiting: None,
            told: Vec::new(),
        };
        let start = StartRun {
            namespace: "default".to_owned(),
            workflow_id: "w".to_owned(),
            workflow_type: "order".to_owned(),
            task_queue: "default".to_owned(),
            input: Payload::default(),
            request_id: "r".to_owned(),
            run_timeout: Some(Duration::from_secs(10)),
            reuse: ReusePolicy::Reject,
            conflict: ConflictPolicy::Fail,
            trace: TraceContext::default(),
            identity: "sim".to_owned(),
            ..StartRun::default()
        };
        place.feed(Input::Start { request: 0, start: Box::new(start) });
        let run = place.store.run_ids_sync()[0];
        (place, run)
    }

    fn signal(&mut self, request: u64, run: RunId) {
        let body = CommandBody::Signal {
            name: "go".to_owned(),
            signal_id: format!("s{request}"),
            input: Payload::default(),
        };
        let id = CommandId::from_uuid(Uuid::from_u128(u128::from(request)));
        self.feed(Input::Command { request, run, id, identity: "sim".to_owned(), body });
    }

    /// Feeds the node, and does all that follows, but leaves an append alone that fails for ever.
    fn feed(&mut self, input: Input) {
        self.pauses.clear();
        self.go_on(VecDeque::from([input]));
    }

    /// The append that waits is tried once more.
    fn try_once(&mut self) {
        self.pauses.truncate(TRIES_MAX - 1);
        let input = self.waiting.take().and_then(|waiting| self.perform(waiting));
        assert!(input.is_some(), "nothing waits");
        self.go_on(input.into_iter().collect());
    }

    fn go_on(&mut self, mut inputs: VecDeque<Input>) {
        while let Some(input) = inputs.pop_front() {
            let now = Timestamp::from_micros(self.now.load(Ordering::Relaxed));
            let mut outputs = Vec::new();
            self.node.step(input, now, &mut outputs);
            inputs.extend(outputs.into_iter().filter_map(|output| self.perform(output)));
        }
    }

    fn perform(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Append { ticket, append, delay } => {
                self.pauses.push(delay);
                if self.pauses.len() > TRIES_MAX {
                    self.waiting = Some(Output::Append { ticket, append, delay });
                    return None;
                }
                let error = match self.failing.len() {
                    0 | 1 => self.failing.front().cloned(),
                    _ => self.failing.pop_front(),
                };
                let verdict = match error {
                    Some(error) => Verdict::Failed(error),
                    None => self.store.append_sync(vec![append]).verdicts.remove(0),
                };
                Some(Input::Appended { ticket, verdict })
            }
            Output::Load { run, after, .. } => {
                let events = Ok(self.store.read_events_sync(run, after, usize::MAX));
                Some(Input::Loaded { run, after, events })
            }
            Output::FindStart { ticket, namespace, workflow_id, request_id } => {
                let record = Ok(self.store.find_start_sync(&namespace, &workflow_id, &request_id));
                Some(Input::StartFound { ticket, record })
            }
            Output::Done { request, result } => {
                self.told.push((request, result));
                None
            }
            _ => None,
        }
    }

    fn kinds(&self, run: RunId) -> Vec<String> {
        let history = self.store.read_events_sync(run, 0, usize::MAX);
        history.iter().map(|event| event.body.kind().to_owned()).collect()
    }
}

fn is_no_room(told: &[(u64, Result<(), EngineError>)], requests: &[u64]) -> bool {
    told.iter().map(|(request, _)| *request).eq(requests.iter().copied())
        && told.iter().all(|(_, result)| matches!(result, Err(EngineError::Store(Error::Exhausted(_)))))
}

#[test]
fn who_is_told_that_there_is_no_room_has_written_nothing_and_never_will() {
    let (mut place, run) = Place::new();
    place.failing.push_back(no_room());
    place.signal(1, run);
    assert!(is_no_room(&place.told, &[1]), "{:?}", place.told);
    assert_eq!(place.pauses.len(), TRIES, "it is not tried again");
    place.failing.clear();
    place.signal(2, run);
    assert_eq!(place.kinds(run), ["RunStarted", "SignalReceived"], "only the second");
    place.signal(1, run);
    assert_eq!(place.kinds(run).len(), 3, "it asked again");
    assert!(place.told[1..].iter().all(|(_, result)| result.is_ok()), "{:?}", place.told);
}

#[test]
fn a_try_of_which_nothing_is_known_stays_unknown() {
    let (mut place, run) = Place::new();
    place.failing.extend([Error::OutcomeUnknown("sim".to_owned()), no_room()]);
    place.signal(1, run);
    let told = matches!(&place.told[..], [(1, Err(EngineError::Store(Error::OutcomeUnknown(_))))]);
    assert!(told, "{:?}", place.told);
    assert!(place.pauses.len() > TRIES_MAX, "it goes on until the outcome is known");
}

#[test]
fn what_no_client_waits_for_is_tried_until_there_is_room() {
    let (mut place, run) = Place::new();
    place.now.fetch_add(11_000_000, Ordering::Relaxed);
    let due = place.store.claim_timers_sync(10, Duration::from_secs(10)).due;
    assert_eq!(due.len(), 1);
    place.failing.push_back(no_room());
    place.feed(Input::TimersDue(due));
    assert!(place.pauses.len() > TRIES_MAX);
    assert!(
        place.pauses[TRIES..].iter().all(|pause| *pause >= StdDuration::from_secs(1)),
        "{:?}",
        place.pauses
    );
    // A client that comes meanwhile hears of it at the next try.
    let pauses = std::mem::take(&mut place.pauses);
    place.signal(1, run);
    assert!(place.told.is_empty() && place.pauses.is_empty());
    place.pauses = pauses;
    place.try_once();
    assert!(is_no_room(&place.told, &[1]), "{:?}", place.told);
    assert_eq!(place.kinds(run), ["RunStarted"]);
    place.failing.clear();
    place.try_once();
    assert_eq!(place.kinds(run), ["RunStarted", "RunTimedOut"]);
}
