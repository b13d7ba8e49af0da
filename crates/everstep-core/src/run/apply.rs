//! Folding facts into state. Total on every history that [`decide`](crate::decide) can write.

use std::collections::BTreeMap;

use super::{Guard, IdSet, Outcome, Owner, Run, StepState, repeat, succession};
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
        // A run that is delayed has not lived until it starts.
        let began = start.start_at.map_or(event.at, |at| at.max(event.at));
        let timeout = start.run_timeout.map(|t| (TimerKey::RUN_TIMEOUT, began.after(t)));
        let delay = start.start_at.map(|at| (TimerKey::START, at));
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
            pin: None,
            blocked: String::new(),
            cancel_requested: false,
            fruitless: 0,
            last_release: String::new(),
            committed: 0,
            needs_worker: start.start_at.is_none(),
            steps: BTreeMap::new(),
            steps_ended: IdSet::default(),
            queued: BTreeMap::new(),
            queued_ended: BTreeMap::new(),
            timers: timeout.into_iter().chain(delay).collect(),
            timers_ended: IdSet::default(),
            signals: BTreeMap::new(),
            cancel: None,
            termination: None,
            successor: None,
            last_command: event.command_id,
            bytes: event.body.data_bytes() as u64,
            outcome: Outcome::default(),
            doubts: 0,
            resolved: BTreeMap::new(),
            resolutions: BTreeMap::new(),
            versions: BTreeMap::new(),
            children: super::child::Children::default(),
            externals: super::external::Externals::default(),
            updates: super::Updates::default(),
            notes: None,
            upserts: IdSet::default(),
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
        self.bytes += event.body.data_bytes() as u64;
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
            EventBody::WorkerAttached { session, worker, .. } => {
                self.note_pin(&event.body);
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
            EventBody::StepStarted { .. }
            | EventBody::StepInDoubt { .. }
            | EventBody::StepResolved(_)
            | EventBody::StepScheduled(_)
            | EventBody::StepCancelRequested { .. }
            | EventBody::StepCompleted { .. }
            | EventBody::StepFailed { .. } => self.change_step(event),
            EventBody::TimerStarted { .. }
            | EventBody::TimerFired { .. }
            | EventBody::TimerCanceled { .. } => {
                self.change_timer(&event.body);
            }
            EventBody::SignalReceived { name, signal_id, input } => {
                let said = repeat::of_signal(name, input);
                let heard = repeat::Heard { said, seq: event.seq, at: event.at };
                self.signals.insert(signal_id.clone(), heard);
                self.wake();
            }
            EventBody::CancelRequested { reason } => self.note_cancel(event, reason),
            EventBody::UpdateAccepted { .. } | EventBody::UpdateCompleted { .. } => self.note_update(event),
            EventBody::VersionMarked { change_id, version } => {
                self.versions.insert(change_id.clone(), *version);
            }
            EventBody::ChildScheduled(scheduled) => self.note_child(event, scheduled),
            EventBody::ChildStarted { child, .. } => self.note_child_started(*child),
            EventBody::ChildClosed(closed) => self.note_child_closed(closed.child),
            EventBody::ExternalRequested(requested) => self.note_external(event.seq, requested.op),
            EventBody::ExternalResolved { op, .. } => self.note_external_resolved(*op),
            EventBody::AttributesUpserted { op, notes } => self.note(*op, notes),
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
            | EventBody::RunContinued { .. }
            | EventBody::RunTimedOut { .. } => self.close(event),
        }
    }

    /// What happened to a step, wherever it runs.
    fn change_step(&mut self, event: &Event) {
        match &event.body {
            EventBody::StepStarted { step, name, attempt, in_doubt } => {
                self.start_step(*step, name, *attempt, *in_doubt);
            }
            EventBody::StepInDoubt { step, .. } if self.note_queued_doubt(*step, event.at) => {}
            EventBody::StepInDoubt { step, attempt, .. } => self.note_doubt(*step, *attempt, event.at),
            EventBody::StepResolved(resolved) => self.note_resolution(event, resolved),
            EventBody::StepScheduled(scheduled) => self.note_scheduled(event, scheduled),
            EventBody::StepCancelRequested { step } => self.note_step_cancel(*step),
            EventBody::StepCompleted { step, attempt, result, .. }
                if self.complete_queued(*step, *attempt, result) => {}
            EventBody::StepFailed { failure, retry_at, .. }
                if self.fail_queued(event, failure, *retry_at) => {}
            EventBody::StepCompleted { step, .. } => self.end_step(*step),
            EventBody::StepFailed { step, attempt, retry_at, .. } => {
                self.fail_step(*step, *attempt, *retry_at)
            }
            _ => {}
        }
    }

    fn change_timer(&mut self, body: &EventBody) {
        match body {
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
            _ => {}
        }
    }

    /// True when it has no worker because the instant of its start has not come.
    pub(super) fn is_delayed(&self) -> bool {
        self.start.start_at.is_some() && self.timers.contains_key(&TimerKey::START)
    }

    fn note_cancel(&mut self, event: &Event, reason: &str) {
        self.cancel_requested = true;
        let said = repeat::of_reason(reason);
        self.cancel = Some(repeat::CancelAsked { id: event.command_id, said, seq: event.seq });
        self.wake();
    }

    /// Something happened that its worker has to see.
    pub(super) fn wake(&mut self) {
        if self.owner.is_none() && self.status == RunStatus::Running && !self.is_delayed() {
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
            EventBody::RunContinued { .. } => (RunStatus::Continued, Payload::default(), None),
            _ => (RunStatus::TimedOut, Payload::default(), Some(succession::timed_out())),
        };
        self.status = status;
        self.outcome = Outcome { result, failure };
        self.successor = event.body.successor();
        self.closed_at = Some(event.at);
        self.blocked.clear();
        self.owner = None;
        self.needs_worker = false;
        self.timers.clear();
        self.steps.clear();
        self.queued.clear();
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
