//! Updates at work in a program, as the model has them: handlers beside the body, each polled after it in the order in
//! which the updates were accepted.

use std::collections::BTreeMap;

use everstep_core::{CommitCommand, Event, EventBody, OpId, Payload, Seq, UpdateOutcome};
use everstep_tests::program::update_answer;

use super::{Core, Waits, Work};

/// The updates of a run that have no recorded answer, by the events that accepted them.
#[derive(Default)]
pub(super) struct Updates(BTreeMap<Seq, Update>);

struct Update {
    id: String,
    handler: Handler,
    answer: Option<Payload>,
    /// The answer was handed out to be recorded.
    taken: bool,
}

enum Handler {
    New,
    Steps(OpId),
    Gone,
}

impl Updates {
    /// Code that has ended takes nothing on.
    pub(super) fn note(&mut self, event: &Event, runs: bool) {
        match &event.body {
            EventBody::UpdateAccepted { input, .. } if runs => {
                let id = serde_json::from_slice(&input.data).unwrap_or_default();
                let update = Update { id, handler: Handler::New, answer: None, taken: false };
                self.0.insert(event.seq, update);
            }
            EventBody::UpdateCompleted { accepted, .. } => drop(self.0.remove(accepted)),
            _ => {}
        }
    }

    /// Looks at each handler once. True when the body may see a difference.
    pub(super) fn poll(&mut self, core: &mut Core) -> bool {
        let mut moved = false;
        for update in self.0.values_mut() {
            moved |= update.poll(core);
        }
        moved
    }

    pub(super) fn take_answers(&mut self) -> Vec<Work> {
        let answer = |(&accepted, update): (&Seq, &mut Update)| {
            let answer = update.answer.clone().filter(|_| !update.taken)?;
            update.taken = true;
            let outcome = UpdateOutcome::Completed(answer);
            Some(Work::Command(CommitCommand::CompleteUpdate { accepted, outcome }))
        };
        self.0.iter_mut().filter_map(answer).collect()
    }

    /// The code has ended, and with it what it still had to do for others.
    pub(super) fn drop_all(&mut self, core: &mut Core) {
        for update in self.0.values_mut() {
            if let Handler::Steps(step) = std::mem::replace(&mut update.handler, Handler::Gone) {
                core.drop_step(step);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What handlers wait for.
    pub(super) fn waits(&self) -> impl Iterator<Item = Waits> {
        self.0.values().filter_map(|update| match update.handler {
            Handler::Steps(step) => Some(Waits::Step(step)),
            Handler::New | Handler::Gone => None,
        })
    }
}

impl Update {
    fn poll(&mut self, core: &mut Core) -> bool {
        let line = match self.handler {
            Handler::Gone => return false,
            Handler::New => match core.program.update_step(&self.id).cloned() {
                Some(step) => {
                    self.handler = Handler::Steps(core.begin_step(step, None));
                    return true;
                }
                None => None,
            },
            Handler::Steps(step) => match core.step(step).and_then(|step| step.line.clone()) {
                Some(line) => Some(line),
                None => return false,
            },
        };
        let answer = update_answer(&self.id, line.as_deref());
        self.answer = Some(Payload::json(serde_json::Value::from(answer).to_string()));
        self.handler = Handler::Gone;
        core.updated.insert(self.id.clone());
        true
    }
}
