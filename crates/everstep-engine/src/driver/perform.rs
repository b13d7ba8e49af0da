//! One output after the other.

use std::sync::Arc;
use std::time::Duration;

use everstep_store::{self as store, Append};
use tokio::sync::mpsc::error::TrySendError;

use super::{Driver, Shared, read_all};
use crate::WorkerOut;
use crate::node::{Input, Output};

/// How long to leave a failing dispatch alone.
const DISPATCH_PAUSE: Duration = Duration::from_secs(1);
/// Blocked runs looked at for one newly connected queue.
const BLOCKED_MAX: usize = 1_000;

impl Driver {
    pub(super) fn perform(&mut self, output: Output) {
        match output {
            Output::Started { request, result } => {
                // The caller may have gone; its run has not.
                self.starts.remove(&request).map(|reply| reply.send(result));
            }
            Output::Done { request, result } => {
                if let (Some(reply), Err(error)) = (self.updates.remove(&request), &result) {
                    let _ = reply.send(Err(error.clone()));
                }
                self.commands.remove(&request).map(|reply| reply.send(result));
            }
            Output::Accepted { request, seq } => {
                self.updates.remove(&request).map(|reply| reply.send(Ok(seq)));
            }
            Output::HoldFor { run, request, wait } => {
                let shared = Arc::clone(&self.shared);
                self.shared.spawn(async move {
                    tokio::time::sleep(wait.to_std()).await;
                    shared.feed(Input::HoldOver { run, request });
                });
            }
            Output::Append { ticket, append, delay } => append_later(&self.shared, ticket, append, delay),
            Output::Load { run, after, delay } => super::reads::load(&self.shared, (run, after), delay),
            Output::ToWorker { link, message } => self.send_to_worker(link, message),
            Output::CloseLink { link } => {
                self.links.remove(&link);
            }
            Output::Opened(run) => self.shared.hub.opened(run),
            Output::Dropped(run) => self.shared.hub.dropped(run),
            Output::Tail(run, tail) => self.shared.hub.tail(run, tail),
            Output::ClosedElsewhere(run, tail) => self.shared.hub.ended_elsewhere(run, tail),
            Output::RunStarted(run) => {
                self.shared.hub.named(run.id(), &run.start().namespace, &run.start().workflow_id);
                if let Some(observer) = &self.shared.config.observer {
                    observer.run_started(&run);
                }
            }
            Output::RunClosed(run) => {
                self.shared.hub.closed(&run);
                if let Some(observer) = &self.shared.config.observer {
                    observer.run_closed(&run);
                }
            }
            Output::TimersAt(at) => self.shared.timers.at(at),
            Output::OutboxDone(run, seq) => {
                // Without the task that deletes it, the sweep does.
                let _ = self.shared.heard.send((run, seq));
            }
            Output::Answered { ask, result } => {
                self.asks.remove(&ask).map(|reply| reply.send(result));
            }
            Output::Checked { check, result } => {
                self.checks.remove(&check).map(|reply| reply.send(result));
            }
            Output::Steps(output) => super::steps::perform(&self.shared, output),
            Output::RelayAsk(row) => self.relay(*row),
            Output::RelayOver(ask) => {
                self.relays.remove(&ask);
            }
            other => ask(&self.shared, other),
        }
    }

    fn send_to_worker(&mut self, link: u64, message: WorkerOut) {
        let Some(sender) = self.links.get(&link) else { return };
        match sender.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => self.disconnect(link),
            Err(TrySendError::Full(_)) => {
                tracing::warn!(link, "worker does not read its stream: cut off");
                self.disconnect(link);
            }
        }
    }
}

fn append_later(shared: &Arc<Shared>, ticket: u64, append: Append, delay: Duration) {
    let lane = append.run.run_id.as_bytes()[15] as usize % shared.lanes.len();
    if delay.is_zero() {
        let _ = shared.lanes[lane].send((ticket, append));
        return;
    }
    let sender = shared.lanes[lane].clone();
    shared.spawn(async move {
        tokio::time::sleep(delay).await;
        let _ = sender.send((ticket, append));
    });
}

/// Outputs that ask a port something, each in a task of its own.
fn ask(shared: &Arc<Shared>, output: Output) {
    let to = Arc::clone(shared);
    shared.spawn(async move {
        match output {
            Output::LoadForStart { ticket, run } => {
                let events = read_all(&to, run, 0).await;
                to.feed(Input::LoadedForStart { ticket, events });
            }
            Output::FindStart { ticket, namespace, workflow_id, request_id } => {
                let record = to.store.find_start(&namespace, &workflow_id, &request_id).await;
                to.saw(&record);
                to.feed(Input::StartFound { ticket, record });
            }
            Output::OpenSession { link, session } => {
                let until = to.store.open_session(&session).await;
                let until = failed_at("lease.claimed").await.map_or(until, Err);
                to.saw(&until);
                to.feed(Input::SessionOpened { link, until });
            }
            Output::RenewSession { link, session, number, lease } => {
                let until = to.store.renew_session(session, lease).await;
                let until = failed_at("lease.renewed").await.map_or(until, Err);
                to.saw(&until);
                to.feed(Input::SessionRenewed { link, number, until });
            }
            Output::CloseSession { session } => {
                if let Err(error) = to.store.close_session(session).await {
                    tracing::warn!(%error, "session not closed: its lease will end");
                }
                super::tasks::sweep_lost(&to).await;
                super::steps::sweep_lost(&to).await;
            }
            Output::FindOwned { link, session } => find_owned(&to, link, session).await,
            Output::FindBlocked { queue, build_id } => {
                if let Ok(runs) = to.store.blocked_runs(&queue, &build_id, None, BLOCKED_MAX).await {
                    to.feed(Input::Blocked { runs });
                }
            }
            Output::Publish(hint) => {
                if let Err(error) = to.dispatch.publish(hint).await {
                    tracing::debug!(%error, "hint lost: the sweep will find its task");
                }
                let _ = everstep_fault::at("outbox.published").await;
            }
            Output::Pull { queue, max } => {
                let deliveries = match to.dispatch.pull(&queue, max).await {
                    Ok(deliveries) => deliveries,
                    Err(error) => {
                        tracing::debug!(%error, "pull failed");
                        tokio::time::sleep(DISPATCH_PAUSE).await;
                        Vec::new()
                    }
                };
                to.feed(Input::Delivered { queue, deliveries });
            }
            Output::Ack(token) => to.dispatch.ack(token).await,
            Output::Notify(notice) => to.dispatch.notify(notice).await,
            Output::DeleteWakes(seen) => {
                if let Err(error) = to.store.delete_wakes(&seen).await {
                    tracing::debug!(%error, "wakes not deleted: the next sweep tries again");
                }
                let _ = everstep_fault::at("outbox.marked").await;
            }
            other => {
                if let Some(other) = super::outbox::perform(&to, other).await {
                    super::asks::perform(&to, other).await;
                }
            }
        }
    });
}

/// What a failpoint makes of an answer of the store.
pub(super) async fn failed_at(point: &'static str) -> Option<store::Error> {
    let failed = everstep_fault::at(point).await.err()?;
    Some(store::Error::Unavailable(failed.to_string()))
}

async fn find_owned(to: &Arc<Shared>, link: u64, session: everstep_core::SessionId) {
    let mut runs = Vec::new();
    loop {
        match to.store.owned_runs(session, runs.last().copied(), 1_000).await {
            Ok(page) if page.is_empty() => return to.feed(Input::Owned { link, runs: Ok(runs) }),
            Ok(page) => runs.extend(page),
            Err(error) => return to.feed(Input::Owned { link, runs: Err(error) }),
        }
    }
}
