//! Reading histories: what waits is read in one go, as what waits is appended in one go.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_core::{Event, RunId, Seq};
use everstep_store::{self as store, Head};
use tokio::sync::{Semaphore, mpsc};

use super::{PAGE, Shared};
use crate::node::Input;

/// Runs whose histories are read in one go at most.
const RUNS_MAX: usize = 64;
/// Reads under way at one time: while the database is at one, the next gathers.
const UNDER_WAY_MAX: usize = 2;

/// Reads all events of `run` after `after`, once `delay` is over, and feeds them to the node.
pub(super) fn load(shared: &Arc<Shared>, (run, after): (RunId, Seq), delay: StdDuration) {
    if delay.is_zero() {
        // Without the task that reads, the node is ending.
        let _ = shared.loads.send((run, after));
        return;
    }
    let to = Arc::clone(shared);
    shared.spawn(async move {
        tokio::time::sleep(delay).await;
        let _ = to.loads.send((run, after));
    });
}

/// Takes all that waits, reads it in one go, takes what gathered meanwhile.
pub(super) async fn loads(shared: Arc<Shared>, mut waiting: mpsc::UnboundedReceiver<(RunId, Seq)>) {
    let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let mut taken = Vec::new();
    while let Ok(permit) = Arc::clone(&under_way).acquire_owned().await {
        if waiting.recv_many(&mut taken, RUNS_MAX).await == 0 {
            return;
        }
        let (to, runs) = (Arc::clone(&shared), std::mem::take(&mut taken));
        shared.spawn(async move {
            let heads = to.store.read_heads(&runs).await;
            drop(permit);
            for ((run, after), head) in runs.into_iter().zip(heads) {
                match head {
                    Ok(head) if head.more => {
                        let from = Arc::clone(&to);
                        to.spawn(async move {
                            let events = read_rest(&from, run, (after, head)).await;
                            loaded(&from, (run, after), events);
                        });
                    }
                    head => loaded(&to, (run, after), head.map(|head| head.events)),
                }
            }
        });
    }
}

fn loaded(shared: &Shared, (run, after): (RunId, Seq), events: Result<Vec<Event>, store::Error>) {
    shared.saw(&events);
    shared.feed(Input::Loaded { run, after, events });
}

/// Reads all events of a run after `after`, page by page.
pub(crate) async fn read_all(shared: &Shared, run: RunId, after: Seq) -> Result<Vec<Event>, store::Error> {
    let head = match shared.store.read_heads(&[(run, after)]).await.pop() {
        Some(head) => head?,
        None => Head { events: Vec::new(), more: true },
    };
    read_rest(shared, run, (after, head)).await
}

/// What follows the first events of a run, with them.
async fn read_rest(
    shared: &Shared,
    run: RunId,
    (after, Head { mut events, more }): (Seq, Head),
) -> Result<Vec<Event>, store::Error> {
    if !more {
        return Ok(events);
    }
    loop {
        let from = events.last().map_or(after, |e| e.seq);
        let page = shared.store.read_events(run, from, PAGE).await?;
        if page.is_empty() {
            return Ok(events);
        }
        events.extend(page);
    }
}
