//! What runs have to hear of each other, as far as the store is asked.

use std::sync::Arc;

use everstep_core::{Duration, RunId, Seq};
use tokio::sync::mpsc;

use super::{Shared, read_all};
use crate::node::{Input, OUTBOX_CLAIM_MAX, Output};

/// Runs whose outbox one look of the sweep takes at most.
const RUNS_MAX: usize = 100;
/// Rows of the outbox that are deleted at one time.
const ROWS_MAX: usize = 1_000;
/// How long what this node is telling others of is left to it. It is at them again with each look of the sweep.
const HOLD: Duration = Duration::from_secs(3);

/// Deletes rows of the outbox as others have heard of them: all that gathered while the last ones were deleted.
pub(super) async fn deletes(shared: Arc<Shared>, mut heard: mpsc::UnboundedReceiver<(RunId, Seq)>) {
    let mut rows = Vec::new();
    while heard.recv_many(&mut rows, ROWS_MAX).await > 0 {
        let done = match everstep_fault::at("outbox.delivered").await {
            Ok(()) => shared.store.delete_outbox(&rows).await.err().map(|e| e.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = done {
            tracing::debug!(%error, "outbox not deleted: the sweep finds it, and nobody hears anything new");
        }
        rows.clear();
    }
}

/// Keeps what this node is telling others of to itself. Before anything else of a look: their grace is short.
pub(super) async fn hold(shared: &Arc<Shared>, telling: &[(RunId, Seq)]) {
    if !telling.is_empty()
        && let Err(error) = shared.store.hold_outbox(telling, HOLD).await
    {
        tracing::debug!(%error, "outbox not held: another node may tell the same once more");
    }
}

/// Events that others have perhaps not heard of. False when the store did not say.
pub(super) async fn sweep(shared: &Arc<Shared>) -> bool {
    match shared.store.claim_outbox(RUNS_MAX, OUTBOX_CLAIM_MAX).await {
        Ok(found) if !found.is_empty() => {
            shared.feed(Input::OutboxFound(found));
            true
        }
        found => found.is_ok(),
    }
}

/// Outputs that are about what runs have to hear of each other; gives back any other.
pub(super) async fn perform(to: &Arc<Shared>, output: Output) -> Option<Output> {
    match output {
        Output::LoadSource { run, seqs } => {
            let events = read_all(to, run, 0).await;
            to.saw(&events);
            to.feed(Input::SourceLoaded { run, seqs, events });
        }
        Output::FindTarget { flight, namespace, workflow_id } => {
            let found = to.store.find_start(&namespace, &workflow_id, "").await;
            to.saw(&found);
            let run = found.map(|found| found.current.map(|(run, _)| run));
            to.feed(Input::TargetFound { flight, run });
        }
        other => return Some(other),
    }
    None
}
