//! Histories held against this worker's code: nothing runs, and nothing is recorded.

use std::sync::Arc;
use std::time::Duration;

use everstep_core::{BlockKind, Blocked, RunId, Seq};
use everstep_proto::api::{self, answer::Outcome};
use everstep_proto::{history, wire};
use tokio::time::Instant;

use super::Settings;
use super::asks::Asked;
use crate::WorkerError;
use crate::testing::{Difference, History, check_history};

#[cfg(test)]
mod tests;

/// What Hello calls it.
pub(super) const CAPABILITY: &str = "checks";
/// Makes a worker that was built without a word about it one that only checks.
const VARIABLE: &str = "EVERSTEP_CHECK_ONLY";
/// How long the replay of one history may take, without the wait for its place. Code that needs longer does not come
/// to rest.
const REPLAY_MAX: Duration = Duration::from_secs(30);

/// Whether the environment says that this process is only to check.
pub(super) fn only() -> Result<bool, WorkerError> {
    match std::env::var(VARIABLE).unwrap_or_default().as_str() {
        "" | "0" | "false" => Ok(false),
        "1" | "true" => Ok(true),
        other => Err(WorkerError::Setting {
            field: VARIABLE,
            problem: format!("must be 1 or 0, and is '{}'", other.escape_debug()),
        }),
    }
}

impl Asked {
    /// Replays the history as strictly as a test would, and says what came of it.
    pub(super) async fn checked(self, settings: Arc<Settings>, run: RunId, history: Vec<history::Event>) {
        let places = settings.places.replays();
        let build_id = settings.build_id.clone();
        // Whoever waits for the answer hears from the server that there is none.
        let unknown = |asked: Self| asked.answer_if(0, None);
        // How long others replay says nothing of this code.
        let Ok(Ok(place)) = tokio::time::timeout_at(self.until(), places.acquire_owned()).await else {
            return unknown(self);
        };
        let limit = Instant::now() + REPLAY_MAX;
        let replay = tokio::task::spawn_blocking(move || {
            let _place = place;
            verdict(&settings, run, history)
        });
        let (expected, produced) = match tokio::time::timeout_at(limit.min(self.until()), replay).await {
            Ok(Ok((seq, outcome))) => return self.answer(seq, outcome),
            Ok(Err(error)) if error.is_panic() => {
                ("code that goes on", "code that panicked when it was made".to_owned())
            }
            Ok(Err(_)) => return self.answer(0, Outcome::Gone("the replay ended early".to_owned())),
            Err(_) if limit <= self.until() => {
                let seconds = REPLAY_MAX.as_secs();
                let produced = format!("code that did not come to rest within {seconds} s");
                ("code that waits for the next event", produced)
            }
            Err(_) => return unknown(self),
        };
        let blocked = blocked(0, expected, &produced, build_id);
        self.answer(0, Outcome::Mismatch(wire::encode_blocked(&blocked)));
    }
}

fn verdict(settings: &Settings, run: RunId, history: Vec<history::Event>) -> (Seq, Outcome) {
    let gone = |why: String| (0, Outcome::Gone(why));
    let decoded = history.into_iter().map(|event| wire::decode_event(event).map(|decoded| decoded.event));
    let events = match decoded.collect::<Result<Vec<_>, _>>() {
        Ok(events) => events,
        Err(error) => return gone(format!("the worker does not understand the history: {error}")),
    };
    let seq = events.last().map_or(0, |event| event.seq);
    let history = match History::from_events(run, events) {
        Ok(history) => history,
        Err(error) => return gone(format!("the worker does not understand the history: {error}")),
    };
    let name = history.workflow_type();
    let Some(workflow) = settings.workflows.get(name) else {
        return gone(format!("this worker has no workflow type '{name}'"));
    };
    match check_history(&history, workflow) {
        Ok(()) => (seq, Outcome::Passed(api::Passed {})),
        Err(difference) => {
            let Difference { seq, expected, produced, source, hint, .. } = *difference;
            let blocked = blocked(seq, &expected, &produced, settings.build_id.clone());
            (seq, Outcome::Mismatch(wire::encode_blocked(&Blocked { source, hint, ..blocked })))
        }
    }
}

fn blocked(at_seq: Seq, expected: &str, produced: &str, build_id: String) -> Blocked {
    Blocked {
        kind: BlockKind::Nondeterminism,
        at_seq,
        expected: expected.to_owned(),
        produced: produced.to_owned(),
        source: String::new(),
        hint: String::new(),
        build_id,
    }
}
