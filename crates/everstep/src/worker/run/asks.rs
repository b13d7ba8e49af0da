//! Questions to a run that this worker holds. They are answered between two events, and only from what is recorded:
//! code that has gone ahead of the record knows something that may never have happened.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use everstep_core::Seq;
use everstep_proto::api::answer::Outcome;
use everstep_proto::wire;
use futures::future::BoxFuture;

use super::RunTask;
use crate::worker::asks::Asked;

/// A handler that runs. The run stands still meanwhile, so that it sees one state.
pub(super) struct Answering {
    asked: Asked,
    seq: Seq,
    running: BoxFuture<'static, Option<Outcome>>,
}

impl RunTask {
    /// Begins to answer what can be answered as the run stands.
    pub(super) fn answer_next(&mut self) {
        if self.given_up {
            // Its machine stands at an event that it cannot follow.
            self.asks.clear();
        }
        self.asks.retain(|asked| !asked.is_late());
        let seq = self.seen.load(Ordering::Acquire);
        while self.answering.is_none() && self.ahead.is_none() {
            let Some(machine) = &self.machine else { return };
            let Some(next) = self.asks.iter().position(|asked| asked.at_least <= seq) else { return };
            let Some(mut asked) = self.asks.remove(next) else { return };
            match asked.handler(machine) {
                Ok(handler) => {
                    // What follows is recorded by others: whatever goes ahead of the record would be in its way.
                    self.called |= asked.leads_to_event();
                    let running = Box::pin(asked.handled_by(Arc::clone(&self.settings), handler));
                    self.answering = Some(Answering { asked, seq, running });
                }
                Err(failure) => asked.answer(seq, Outcome::Refused(wire::encode_failure(&failure))),
            }
        }
    }

    /// The handler is done.
    pub(super) fn answered(&mut self, outcome: Option<Outcome>) {
        if let Some(Answering { asked, seq, .. }) = self.answering.take() {
            asked.answer_if(seq, outcome);
        }
    }
}

/// Waits for the handler that runs, if there is one.
pub(super) async fn handled(answering: &mut Option<Answering>) -> Option<Outcome> {
    match answering {
        Some(answering) => (&mut answering.running).await,
        None => std::future::pending().await,
    }
}
