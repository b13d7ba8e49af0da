//! Updates: from a caller to the node, and the code's answer from the log.

use std::time::Duration as StdDuration;

use everstep_core::{Actor, AskId, Command, CommandBody, EventBody, RunId, Seq, UpdateOutcome};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::asks::{Waiting, new_id};
use super::{Driver, Internal, Message, PAGE, Shared, before_reply};
use crate::node::Input;
use crate::{Error, Update};

/// See [`Engine::update`](crate::Engine::update).
pub(crate) async fn update(
    shared: &Shared,
    run: RunId,
    update: Update,
    wait: StdDuration,
) -> Result<Seq, Error> {
    if shared.stopping.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(Error::Stopping);
    }
    let Update { update_id, name, input, command_id, identity } = update;
    let body = CommandBody::AcceptUpdate { update_id, name, input, seen: 0 };
    let command = Box::new(Command { id: command_id, actor: Actor::Client(identity), body });
    let ask = new_id(shared.clock.now());
    let until = Instant::now() + wait;
    let (reply, mut answer) = oneshot::channel();
    let message = Message::Update { ask, run, command, until, reply };
    shared.requests.send(message).await.map_err(|_| Error::Stopping)?;
    let mut waiting = Waiting::new(ask, shared);
    let answer = match timeout_at(until, &mut answer).await {
        Ok(answer) => answer,
        Err(_) => {
            // Whether it was accepted is settled by then, or the store says that nobody knows.
            let _ = shared.internal.send(Internal::Input(Box::new(Input::AskOver(ask))));
            answer.await
        }
    };
    waiting.is_answered();
    let accepted = answer.map_err(|_| Error::Stopping)?;
    before_reply().await?;
    accepted
}

impl Driver {
    /// A caller wants an update, unless it has gone meanwhile.
    pub(super) fn update(
        &mut self,
        request: u64,
        (ask, run, command): (AskId, RunId, Box<Command>),
        until: Instant,
        reply: oneshot::Sender<Result<Seq, Error>>,
    ) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let _ = reply.send(Err(Error::Overloaded));
        } else if !reply.is_closed() {
            self.updates.insert(request, reply);
            self.step(Input::Update { request, ask, run, command, wait: left.into() });
        }
    }
}

/// See [`Engine::wait_update`](crate::Engine::wait_update).
pub(crate) async fn wait_update(
    shared: &Shared,
    run: RunId,
    update_id: &str,
    mut after: Seq,
    wait: StdDuration,
) -> Result<Option<UpdateOutcome>, Error> {
    let deadline = Instant::now() + wait;
    // Watched before the log is read: what comes after that is news.
    let mut watch = shared.hub.watch(run);
    let mut known = false;
    loop {
        loop {
            let events = shared.store.read_events(run, after, PAGE).await?;
            for event in &events {
                after = event.seq;
                match &event.body {
                    EventBody::UpdateAccepted { update_id: id, .. } if id == update_id => known = true,
                    EventBody::UpdateCompleted { update_id: id, outcome, .. } if id == update_id => {
                        return Ok(Some(outcome.clone()));
                    }
                    body if body.is_terminal() && known => return Err(abandoned(shared, run).await?),
                    _ => {}
                }
            }
            if events.is_empty() {
                break;
            }
        }
        if !known {
            return Err(Error::UpdateNotFound(update_id.to_owned()));
        }
        if timeout_at(deadline, watch.changed(after)).await.is_err() {
            return Ok(None);
        }
    }
}

/// Why no answer comes any more.
async fn abandoned(shared: &Shared, run: RunId) -> Result<Error, Error> {
    let record = shared.store.get_run(run).await?.ok_or_else(|| Error::RunNotFound(run.to_string()))?;
    Ok(Error::UpdateAbandoned(record.row.status))
}
