//! Updates at work: their handlers' futures, polled after the workflow's own in the order in which they were accepted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use everstep_core::replay::Mismatch;
use everstep_core::{CommitCommand, Event, EventBody, Failure, Payload, Seq, UpdateOutcome};

use super::{Machine, Obstacle, Work, WorkflowFactory, WorkflowFuture, nondeterminism};
use crate::ctx::{QueryFn, Shared};
use crate::{Ctx, WorkflowError};

/// An update that the run has accepted and whose answer is not recorded.
pub(super) struct Update {
    accepted: Seq,
    handler: Handler,
    outcome: Option<UpdateOutcome>,
    /// The answer was handed out to be recorded.
    taken: bool,
}

/// The code that an update runs.
enum Handler {
    /// To be called when its turn comes: what it does at once comes after what the workflow does.
    New(WorkflowFactory, Payload),
    Running(WorkflowFuture),
    /// It has ended, or was dropped.
    Gone,
}

/// What the code may have changed between two polls, if anybody could wait for such a change.
pub(super) type Progress = Option<(u64, usize)>;

impl Handler {
    fn poll(&mut self, shared: &Arc<Shared>, cx: &mut Context<'_>) -> Poll<Result<Payload, WorkflowError>> {
        if let Self::New(run, input) = self {
            *self = Self::Running(run(Ctx::new(Arc::clone(shared)), std::mem::take(input)));
        }
        match self {
            Self::Running(future) => future.as_mut().poll(cx),
            Self::New(..) | Self::Gone => Poll::Pending,
        }
    }
}

/// How far the code has come; `None` while nobody waits for what it changes by itself.
pub(super) fn progress(shared: &Shared, updates: &[Update]) -> Progress {
    let state = shared.lock();
    let listens = !state.waits.is_empty() || !updates.is_empty();
    listens.then(|| (state.changes, state.replay.len()))
}

/// Answers that nobody has recorded yet.
pub(super) fn take_answers(updates: &mut [Update], work: &mut Vec<Work>) {
    for update in updates.iter_mut().filter(|update| !update.taken) {
        if let Some(outcome) = update.outcome.clone() {
            update.taken = true;
            let accepted = update.accepted;
            work.push(Work::Command(Box::new(CommitCommand::CompleteUpdate { accepted, outcome })));
        }
    }
}

impl Machine {
    /// Whether the code has come as far as the history says of updates.
    pub(super) fn check_update(&self, event: &Event) -> Result<(), Obstacle> {
        let (expected, produced) = match &event.body {
            EventBody::UpdateAccepted { name, .. } => {
                if self.shared.lock().update_handlers.0.contains_key(name) {
                    return Ok(());
                }
                (format!("update '{name}'"), "no handler for it".to_owned())
            }
            EventBody::UpdateCompleted { accepted, .. } => {
                match self.updates.iter().find(|update| update.accepted == *accepted) {
                    Some(Update { outcome: Some(_), .. }) => return Ok(()),
                    Some(_) => ("a completed update".to_owned(), "one that still runs".to_owned()),
                    None => ("a completed update".to_owned(), "none that is open".to_owned()),
                }
            }
            _ => return Ok(()),
        };
        let source = self.shared.lock().replay.last_source();
        let mismatch = Mismatch { seq: event.seq, expected, produced, source };
        Err(Obstacle::Blocked(Box::new(nondeterminism(&mismatch))))
    }

    /// What an event says of updates.
    pub(super) fn note_update(&mut self, event: &Event) {
        match &event.body {
            // Code that has ended takes nothing on; the run ends with an update that nobody answers.
            EventBody::UpdateAccepted { name, input, .. } if self.future.is_some() => {
                let mut state = self.shared.lock();
                let Some(handler) = state.update_handlers.0.get(name) else { return };
                let handler = Handler::New(Arc::clone(&handler.run), input.clone());
                self.updates.push(Update { accepted: event.seq, handler, outcome: None, taken: false });
                state.updates_running += 1;
            }
            EventBody::UpdateCompleted { accepted, .. } => {
                self.updates.retain(|update| update.accepted != *accepted);
            }
            _ => {}
        }
    }

    /// Polls every handler once.
    pub(super) fn poll_updates(&mut self) -> Result<(), Obstacle> {
        for index in 0..self.updates.len() {
            let update = &mut self.updates[index];
            let mut cx = Context::from_waker(&self.waker);
            let polled = {
                let _polled = self.shared.enter();
                catch_unwind(AssertUnwindSafe(|| update.handler.poll(&self.shared, &mut cx)))
            };
            let outcome = match polled {
                Err(panic) => return Err(self.stopped(&*panic)),
                Ok(Poll::Pending) => continue,
                Ok(Poll::Ready(Ok(result))) => UpdateOutcome::Completed(result),
                Ok(Poll::Ready(Err(error))) => UpdateOutcome::Failed(failure_of(error)),
            };
            update.outcome = Some(outcome);
            update.handler = Handler::Gone;
            let mut state = self.shared.lock();
            state.updates_running -= 1;
            state.changes += 1;
        }
        Ok(())
    }

    /// The workflow has ended, and with it what it still had to do for others.
    pub(super) fn drop_updates(&mut self) {
        for update in &mut self.updates {
            if !matches!(std::mem::replace(&mut update.handler, Handler::Gone), Handler::Gone) {
                self.shared.lock().updates_running -= 1;
            }
        }
    }

    /// True while an update is at work: its end comes at a time of its own.
    pub(super) fn works_on_updates(&self) -> bool {
        !self.updates.is_empty()
    }

    /// What says whether the code agrees to an update of this name, as it stands now.
    ///
    /// # Errors
    /// A failure of kind `UnknownUpdate` that names those that there are, or `RunEnds`.
    pub(crate) fn validator(&self, name: &str) -> Result<QueryFn, Failure> {
        if self.future.is_none() {
            return Err(Failure::new(Failure::RUN_ENDS, "the run's code has returned"));
        }
        let state = self.shared.lock();
        if let Some(handler) = state.update_handlers.0.get(name) {
            return Ok(Arc::clone(&handler.validate));
        }
        let known = state.update_handlers.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none" } else { &known };
        Err(Failure::new("UnknownUpdate", format!("there is no update '{name}'; this run has: {known}")))
    }
}

/// What the caller of an update hears of its handler's error.
fn failure_of(error: WorkflowError) -> Failure {
    match error {
        WorkflowError::Failed(failure) => failure,
        WorkflowError::Canceled(details) => Failure::new("Canceled", details),
        WorkflowError::Continued(_) => Failure::new(
            "InvalidUpdate",
            "a handler of updates cannot go on in a new run: only the workflow can",
        ),
    }
}
