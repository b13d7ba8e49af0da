//! The queued steps of a worker, as a model: what it runs, and the ends that nobody has acknowledged.

use std::collections::BTreeMap;

use everstep_core::{Duration, Failure, Payload, Rejection, StepEnd};
use everstep_engine::{GivenStep, StepKey, StepOffer, StepSaid, WorkerIn, WorkerOut};
use everstep_tests::program::{CANCELED, Doubt, Ends, FLAKY, QUEUED_STEP, QueuedStep, REFUSED};

use crate::worker::Act;

/// The queued steps of one worker process.
#[derive(Debug, Default)]
pub(crate) struct Hands {
    slots: u32,
    running: BTreeMap<StepKey, Running>,
    /// And whether a person may have said otherwise meanwhile.
    unacked: BTreeMap<StepKey, (WorkerIn, bool)>,
}

/// An attempt that runs.
#[derive(Debug)]
struct Running {
    queued: QueuedStep,
    /// What it said about how far it is.
    details: Option<Payload>,
    canceled: bool,
}

impl Hands {
    pub(crate) fn new(slots: u32) -> Self {
        Self { slots, ..Self::default() }
    }

    /// What it offers to run; nothing when it has no slots.
    pub(crate) fn offer(&self) -> Option<StepOffer> {
        let held = self.running.keys().chain(self.unacked.keys()).copied().collect();
        let types = vec![QUEUED_STEP.to_owned()];
        (self.slots > 0).then_some(StepOffer { types, slots: self.slots, per_second: 0.0, held })
    }

    /// Nothing that it holds is its own any more.
    pub(crate) fn clear(&mut self) {
        self.running.clear();
        self.unacked.clear();
    }

    /// A new stream of the same session: whatever may have been lost is said again.
    pub(crate) fn resumed(&self) -> Vec<Act> {
        let beat = |(key, running): (&StepKey, &Running)| beat(*key, running.details.clone());
        let ends = self.unacked.values().map(|(end, _)| Act::Send(end.clone()));
        self.running.iter().map(beat).chain(ends).collect()
    }

    pub(crate) fn hear(&mut self, message: WorkerOut, may_start: bool) -> Vec<Act> {
        match message {
            WorkerOut::StepTask(given) => self.take(*given, may_start),
            WorkerOut::StepCancel { run_id, step, attempt, gone } => {
                let is = |key: &StepKey| (key.run_id, key.step, key.attempt) == (run_id, step, attempt);
                if gone {
                    self.running.retain(|key, _| !is(key));
                    self.unacked.retain(|key, _| !is(key));
                    return Vec::new();
                }
                let key = self.running.iter().find(|(key, running)| is(key) && !running.canceled);
                let Some(key) = key.map(|(key, _)| *key) else { return Vec::new() };
                let Some(running) = self.running.get_mut(&key) else { return Vec::new() };
                running.canceled = true;
                // What waits only for this ends now; what does something may as well end it.
                let waits = running.queued.hangs() && running.queued.step.ends(key.attempt) == Ends::Flaky;
                if waits { self.end(key, StepEnd::Canceled(CANCELED.to_owned())) } else { Vec::new() }
            }
            WorkerOut::StepAsk(key) if self.running.contains_key(&key) => Vec::new(),
            WorkerOut::StepAsk(key) => match self.unacked.get(&key) {
                Some((end, _)) => vec![Act::Send(end.clone())],
                None => vec![returned(key)],
            },
            WorkerOut::StepAck { key, result } => {
                let asks = self.unacked.remove(&key).is_none_or(|(_, asks)| asks);
                let otherwise = matches!(result, Err(Rejection::ResultConflict { .. }));
                assert!(asks || !otherwise, "{key:?}: {result:?}");
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn take(&mut self, given: GivenStep, may_start: bool) -> Vec<Act> {
        let key = given.key;
        if self.running.contains_key(&key) || self.unacked.contains_key(&key) {
            return Vec::new();
        }
        if !may_start {
            return vec![returned(key)];
        }
        let queued: QueuedStep = match serde_json::from_slice(&given.input.data) {
            Ok(queued) => queued,
            Err(error) => panic!("{key:?}: {error}"),
        };
        let said =
            queued.beats.then(|| Payload::json(serde_json::json!(queued.beat(key.attempt)).to_string()));
        // What ran there before belongs to an attempt that is over.
        self.running.retain(|other, _| (other.run_id, other.step) != (key.run_id, key.step));
        let running = Running { queued: queued.clone(), details: said.clone(), canceled: false };
        self.running.insert(key, running);
        let mut acts = vec![Act::Work { key, queued: Box::new(queued), before: given.details }];
        acts.extend(said.map(|said| beat(key, Some(said))));
        acts
    }

    /// An attempt has come to its end.
    pub(crate) fn worked(&mut self, key: StepKey) -> Vec<Act> {
        let Some(running) = self.running.get(&key) else { return Vec::new() };
        let step = &running.queued.step;
        let end = match step.ends(key.attempt) {
            Ends::Flaky => StepEnd::Failed(Failure::new(FLAKY, "as planned")),
            Ends::Refused => StepEnd::Failed(Failure::new(REFUSED, step.nonce.clone()).non_retryable()),
            Ends::Well => StepEnd::Completed(result_of(&running.queued)),
        };
        self.end(key, end)
    }

    fn end(&mut self, key: StepKey, end: StepEnd) -> Vec<Act> {
        let Some(running) = self.running.remove(&key) else { return Vec::new() };
        let elapsed = Duration::from_micros(running.queued.step.slow_us);
        let said = WorkerIn::StepSaid { key, said: StepSaid::Ended(end, elapsed), details: running.details };
        let asks = running.queued.doubt == Some(Doubt::AskHuman);
        self.unacked.insert(key, (said.clone(), asks));
        vec![Act::Send(said)]
    }
}

/// What an attempt that ends well returns.
pub(crate) fn result_of(queued: &QueuedStep) -> Payload {
    Payload::json(serde_json::Value::from(queued.step.result()).to_string())
}

fn beat(key: StepKey, details: Option<Payload>) -> Act {
    Act::Send(WorkerIn::StepBeat { key, details })
}

fn returned(key: StepKey) -> Act {
    Act::Send(WorkerIn::StepSaid { key, said: StepSaid::Returned, details: None })
}
