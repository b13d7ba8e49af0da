//! Checks: from a caller to the node and back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration as StdDuration;

use everstep_core::{AskId, Event, RunId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::asks::new_id;
use super::{Driver, Internal, Message, Shared};
use crate::node::Input;
use crate::{Candidate, CheckTarget, Checked, Error};

/// A check on its way to the node.
#[derive(Debug)]
pub(crate) struct CheckRequest {
    check: AskId,
    target: CheckTarget,
    run: RunId,
    events: Arc<Vec<Event>>,
    until: Instant,
    reply: oneshot::Sender<Result<Checked, Error>>,
}

/// A caller that waits. Its check is forgotten with it.
struct Waiting {
    check: AskId,
    internal: mpsc::UnboundedSender<Internal>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // The node is gone only when everything is.
        let _ = self.internal.send(Internal::Input(Box::new(Input::CheckOver(self.check))));
    }
}

/// See [`Engine::check`](crate::Engine::check).
pub(crate) async fn check(
    shared: &Shared,
    target: CheckTarget,
    (run, events): (RunId, Arc<Vec<Event>>),
    wait: StdDuration,
) -> Result<Checked, Error> {
    if shared.stopping.load(Ordering::Relaxed) {
        return Err(Error::Stopping);
    }
    let (check, until) = (new_id(shared.clock.now()), Instant::now() + wait);
    let (reply, answer) = oneshot::channel();
    let request = CheckRequest { check, target, run, events, until, reply };
    shared.requests.send(Message::Check(Box::new(request))).await.map_err(|_| Error::Stopping)?;
    let _waiting = Waiting { check, internal: shared.internal.clone() };
    match tokio::time::timeout_at(until, answer).await {
        Ok(answer) => answer.map_err(|_| Error::Stopping)?,
        Err(_) => Err(Error::NoAnswer),
    }
}

/// See [`Engine::candidate`](crate::Engine::candidate).
pub(crate) async fn candidate(shared: &Shared, namespace: &str, build_id: &str) -> Result<Candidate, Error> {
    let (namespace, build_id) = (namespace.to_owned(), build_id.to_owned());
    let (reply, answer) = oneshot::channel();
    let message = Message::Candidate { namespace: namespace.clone(), build_id: build_id.clone(), reply };
    shared.requests.send(message).await.map_err(|_| Error::Stopping)?;
    answer.await.map_err(|_| Error::Stopping)?.ok_or(Error::NoCandidate { namespace, build_id })
}

impl Driver {
    pub(super) fn check(&mut self, request: CheckRequest) {
        let CheckRequest { check, target, run, events, until, reply } = request;
        let left = until.saturating_duration_since(Instant::now());
        if reply.is_closed() {
            return;
        }
        self.checks.insert(check, reply);
        self.step(Input::Check { check, target, run, events, wait: left.into() });
    }
}
