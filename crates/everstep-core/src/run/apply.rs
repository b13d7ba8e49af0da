//! Folding facts into state. Total on every history that [`decide`](crate::decide) can write.

use std::collections::BTreeMap;

use super::{Guard, IdSet, Outcome, Owner, Run, StepState, repeat};
use crate::{
    BlockKind, Blocked, DetachReason, DoubtPolicy, Event, EventBody, Failure, HistoryError, OpId, Payload,
    RunId, RunStatus, Seq, TimerKey, TimerKind, Timestamp, projection,
};

impl Run {
    /// The state after the first event.
    ///
    /// # Errors
    /// [`HistoryError`] when `event` is not a `RunStarted` with seq 1.
    pub fn begin(id: RunId, event: &Event) -> Result<Self, HistoryError> {
        if event.seq != 1 {
            return Err(HistoryError::Gap { last: 0, actual: event.seq });
        }
        let EventBody::RunStarted(start) = &event.body else {
            return Err(HistoryError::Misplaced { seq: 1, kind: event.body.kind().to_owned() });
        };
        let timers = start.run_timeout.map(|t| (TimerKey::RUN_TIMEOUT, event.at.after(t)));
        Ok(Self {
            id,
            start: (**start).clone(),
            started_at: event.at,
            status: RunStatus::Running,
            closed_at: None,
            seq: 1,
            at: event.at,
            row_seq: 1,
            epoch: 0,
            owner: None,
            build_id: String::new(),
            blocked: String::new(),
            cancel_requested: false,
            fruitless: 0,
            last_release: String::new(),
            committed: 0,
            needs_worker: true,
            steps: BTreeMap::new(),
            steps_ended: IdSet::default(),
            timers: timers.into_iter().collect(),
            timers_ended: IdSet::default(),
            signals: BTreeMap::new(),
            cancel: None,
            termination: None,
            last_command: event.command_id,
            bytes: start.input.data.len() as u64,
            outcome: Outcome::default(),
            doubts: 0,
            resolved: BTreeMap::new(),
            resolutions: BTreeMap::new(),
            versions: BTreeMap::new(),
        })
    }

    /// The state after one more event.
    ///
    /// # Errors
    /// [`HistoryError`]; the state is then as before.
    pub fn apply(&mut self, event: &Event) -> Result<(), HistoryError> {
        self.check_place(event)?;
        self.seq = event.seq;
        self.at = self.at.max(event.at);
        if projection::changes_row(&event.body) {
            self.row_seq = event.seq;
        }
        if event.epoch == self.epoch
            && let Some((epoch, number)) = event.command_id.worker_commit(self.id)
            && epoch == self.epoch
        {
            self.committed = self.committed.max(number);
            // Giving the run back is not progress: a workflow that panics at once does that, again and again.
            if !matches!(event.body, EventBody::WorkerDetached { .. }) {
                self.fruitless = 0;
            }
        }
        self.last_command = event.command_id;
        self.bytes += event.body.payload().map_or(0, |p| p.data.len() as u64);
        self.change(event);
        Ok(())
    }

    fn check_place(&self, event: &Event) -> Result<(), HistoryError> {
        let seq = event.seq;
        if seq != self.seq + 1 {
            return Err(HistoryError::Gap { last: self.seq, actual: seq });
        }
        if self.status.is_closed() {
            return Err(HistoryError::AfterEnd { seq });
        }
        if matches!(event.body, EventBody::RunStarted(_)) {
            return Err(HistoryError::Misplaced { seq, kind: event.body.kind().to_owned() });
        }
        let claim = matches!(event.body, EventBody::WorkerAttached { .. });
        if event.epoch != self.epoch + u32::from(claim) {
            return Err(HistoryError::Epoch { seq, last: self.epoch, actual: event.epoch });
        }
        Ok(())
    }

    fn change(&mut self, event: &Event) {
        match &event.body {
            EventBody::RunStarted(_) | EventBody::Ignored { .. } => {}
            EventBody::WorkerAttached { session, worker } => {
                self.epoch = event.epoch;
                self.committed = 0;
                self.fruitless += 1;
                self.build_id.clone_from(&worker.build_id);
                self.owner = Some(Owner { session: *session, worker: worker.clone() });
                self.needs_worker = false;
            }
            EventBody::WorkerDetached { reason } => {
                self.owner = None;
                match reason {
                    DetachReason::Parked => self.fruitless = 0,
                    DetachReason::Released(message) => {
                        self.last_release.clone_from(message);
                        self.needs_worker = true;
                    }
                    DetachReason::Lost => self.needs_worker = true,
                }
            }
            EventBody::StepStarted { step, name, attempt, in_doubt } => {
                self.start_step(*step, name, *attempt, *in_doubt);
            }
            EventBody::StepInDoubt { step, attempt, .. } => self.note_doubt(*step, *attempt, event.at),
            EventBody::StepResolved(resolved) => self.note_resolution(event, resolved),
            EventBody::StepCompleted { step, .. } => self.end_step(*step),
            EventBody::StepFailed { step, attempt, retry_at, .. } => {
                self.fail_step(*step, *attempt, *retry_at)
            }
            EventBody::TimerStarted { timer, fire_at } => {
                self.timers.insert(TimerKey::timer(*timer), *fire_at);
            }
            EventBody::TimerFired { timer } => {
                self.timers.remove(timer);
                if timer.kind == TimerKind::Timer {
                    self.timers_ended.insert(OpId(timer.id));
                }
                self.wake();
            }
            EventBody::TimerCanceled { timer } => {
                self.timers.remove(&TimerKey::timer(*timer));
                self.timers_ended.insert(*timer);
            }
            EventBody::SignalReceived { name, signal_id, input } => {
                self.signals.insert(signal_id.clone(), repeat::of_signal(name, input));
                self.wake();
            }
            EventBody::CancelRequested { reason } => {
                self.cancel_requested = true;
                self.cancel = Some((event.command_id, repeat::of_reason(reason)));
                self.wake();
            }
            EventBody::VersionMarked { change_id, version } => {
                self.versions.insert(change_id.clone(), *version);
            }
            EventBody::RunBlocked(blocked) => self.block(blocked),
            EventBody::RunUnblocked { .. } => {
                self.status = RunStatus::Running;
                self.blocked.clear();
                self.fruitless = 0;
                self.needs_worker = true;
            }
            EventBody::RunCompleted { .. }
            | EventBody::RunFailed { .. }
            | EventBody::RunCanceled { .. }
            | EventBody::RunTerminated { .. }
            | EventBody::RunTimedOut => self.close(event),
        }
    }

    /// Something happened that its worker has to see.
    pub(super) fn wake(&mut self) {
        if self.owner.is_none() && self.status == RunStatus::Running {
            self.needs_worker = true;
        }
    }

    fn start_step(&mut self, step: OpId, name: &str, attempt: u32, in_doubt: Option<DoubtPolicy>) {
        let failures = self.step(step).map_or(0, |s| s.failures);
        let guard = in_doubt.map(|policy| Box::new(Guard { name: name.to_owned(), policy, since: None }));
        self.set_step(step, Some(StepState { attempt, failures, running: true, guard }));
        self.timers.remove(&TimerKey::retry(step));
    }

    pub(super) fn end_step(&mut self, step: OpId) {
        self.set_step(step, None);
        self.steps_ended.insert(step);
        self.timers.remove(&TimerKey::retry(step));
    }

    fn fail_step(&mut self, step: OpId, attempt: u32, retry_at: Option<Timestamp>) {
        let Some(due) = retry_at else { return self.end_step(step) };
        let failures = self.step(step).map_or(0, |s| s.failures) + 1;
        self.set_step(step, Some(StepState { attempt, failures, running: false, guard: None }));
        self.timers.insert(TimerKey::retry(step), due);
    }

    fn block(&mut self, blocked: &Blocked) {
        self.status = RunStatus::Blocked;
        self.owner = None;
        self.needs_worker = false;
        self.build_id.clone_from(&blocked.build_id);
        self.blocked = describe(blocked);
    }

    fn close(&mut self, event: &Event) {
        let (status, result, failure) = match &event.body {
            EventBody::RunCompleted { result, .. } => (RunStatus::Completed, result.clone(), None),
            EventBody::RunFailed { failure, .. } => {
                (RunStatus::Failed, Payload::default(), Some(failure.clone()))
            }
            EventBody::RunCanceled { details } => {
                (RunStatus::Canceled, Payload::default(), Some(Failure::new("Canceled", details.clone())))
            }
            EventBody::RunTerminated { reason } => {
                self.termination = Some(repeat::of_reason(reason));
                (RunStatus::Terminated, Payload::default(), Some(Failure::new("Terminated", reason.clone())))
            }
            _ => {
                let failure = Failure::new("RunTimeout", "the run outlived its run timeout");
                (RunStatus::TimedOut, Payload::default(), Some(failure))
            }
        };
        self.status = status;
        self.outcome = Outcome { result, failure };
        self.closed_at = Some(event.at);
        self.blocked.clear();
        self.owner = None;
        self.needs_worker = false;
        self.timers.clear();
        self.steps.clear();
        self.doubts = 0;
    }
}

fn describe(blocked: &Blocked) -> String {
    let kind = match blocked.kind {
        BlockKind::Nondeterminism => "nondeterminism",
        BlockKind::ForeignWake => "foreign wake",
        BlockKind::Poison => "poison",
    };
    let at: Seq = blocked.at_seq;
    let mut text = kind.to_owned();
    if at > 0 {
        text.push_str(&format!(" at event {at}"));
    }
    for (label, value) in [
        ("expected", &blocked.expected),
        ("got", &blocked.produced),
        ("at", &blocked.source),
        ("hint", &blocked.hint),
    ] {
        if !value.is_empty() {
            text.push_str(&format!("; {label} {value}"));
        }
    }
    text
}
