//! Questions: from a caller to the node, and between nodes over the store.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_core::{AskId, Duration, RunId, Timestamp};
use everstep_dispatch::Notice;
use everstep_store::{AskAnswer, AskRow, AskState, AskWant, Relay};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::{Builder, Uuid};

use super::{Driver, Internal, Message, Shared, read_all};
use crate::node::{Input, Output};
use crate::{Answer, AskTarget, Error, Query};

/// How long a question of another node stays with the node that claimed it. Longer than a replay takes; a node that
/// dies over it delays the answer by this much.
const CLAIM: Duration = Duration::from_secs(3);
/// Questions claimed at one time.
const CLAIMS_MAX: usize = 64;
/// How often the asker looks for the answer when nobody tells it that it is there.
const LOOK: StdDuration = StdDuration::from_millis(200);

/// A caller that waits. Its question is forgotten with it.
pub(super) struct Waiting {
    ask: AskId,
    internal: mpsc::UnboundedSender<Internal>,
    answered: bool,
}

impl Waiting {
    pub(super) fn new(ask: AskId, shared: &Shared) -> Self {
        Self { ask, internal: shared.internal.clone(), answered: false }
    }

    pub(super) fn is_answered(&mut self) {
        self.answered = true;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.answered {
            // The node is gone only when everything is.
            let _ = self.internal.send(Internal::Input(Box::new(Input::AskOver(self.ask))));
        }
    }
}

/// See [`Engine::ask`](crate::Engine::ask).
pub(crate) async fn ask(
    shared: &Shared,
    target: AskTarget,
    query: Query,
    wait: StdDuration,
) -> Result<Answer, Error> {
    if shared.stopping.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(Error::Stopping);
    }
    let ask = new_id(shared.clock.now());
    let until = Instant::now() + wait;
    let (reply, mut answer) = oneshot::channel();
    let message = Message::Ask { ask, target, query, until, reply };
    shared.requests.send(message).await.map_err(|_| Error::Stopping)?;
    let mut waiting = Waiting::new(ask, shared);
    let answer = match tokio::time::timeout_at(until, &mut answer).await {
        Ok(answer) => answer,
        Err(_) => {
            let _ = shared.internal.send(Internal::Input(Box::new(Input::AskOver(ask))));
            answer.await
        }
    };
    waiting.is_answered();
    answer.map_err(|_| Error::Stopping)?
}

/// Ids follow each other in time, so that those who wait longest are served first.
pub(super) fn new_id(now: Timestamp) -> AskId {
    let millis = u64::try_from(now.as_micros() / 1_000).unwrap_or(0);
    let mut random = [0; 10];
    random.copy_from_slice(&Uuid::new_v4().as_bytes()[6..]);
    AskId::from_uuid(Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}

impl Driver {
    /// A caller asks, unless it has gone meanwhile.
    pub(super) fn asked(
        &mut self,
        ask: AskId,
        (target, query): (AskTarget, Query),
        until: Instant,
        reply: oneshot::Sender<Result<Answer, Error>>,
    ) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Nobody has sent the question on, and its end was told before it.
            let _ = reply.send(Err(Error::Overloaded));
        } else if !reply.is_closed() {
            self.asks.insert(ask, reply);
            self.step(Input::Ask { ask, target, query, wait: left.into() });
        }
    }

    /// Leaves a question for other nodes, until `RelayOver`.
    pub(super) fn relay(&mut self, row: AskRow) {
        let (over, is_over) = oneshot::channel();
        self.relays.insert(row.ask, over);
        let shared = Arc::clone(&self.shared);
        self.shared.spawn(async move {
            let ask = row.ask;
            let Some(relay) = shared.store.relay() else { return };
            tokio::select! {
                answer = answer_of(&shared, relay, row) => shared.feed(Input::AskRelayed { ask, answer }),
                _ = is_over => {}
            }
            if let Err(error) = relay.delete_ask(ask).await {
                tracing::debug!(%error, "question not deleted: it goes with a later one");
            }
        });
    }
}

/// Puts the question where other nodes find it, and waits for what they say.
async fn answer_of(shared: &Shared, relay: &dyn Relay, mut row: AskRow) -> AskAnswer {
    let until = Instant::now() + row.wait.to_std();
    let mut watch = shared.hub.watch(row.run_id);
    loop {
        match relay.look_at_ask(row.ask).await {
            Ok(AskState::Answered(answer)) => return answer,
            Ok(AskState::Open) => {}
            Ok(AskState::Absent) => {
                row.wait = until.saturating_duration_since(Instant::now()).into();
                if relay.put_ask(&row).await.is_ok() {
                    let (run_id, node) = (row.run_id, shared.config.node_id);
                    let notice = Notice { run_id, tail: row.at_least, closed: false, node, asked: true };
                    shared.dispatch.notify(notice).await;
                }
            }
            Err(error) => tracing::debug!(%error, "answers not looked for"),
        }
        // News of the run may be news of the answer.
        let _ = tokio::time::timeout(LOOK, watch.news()).await;
    }
}

/// Outputs that are about questions.
pub(super) async fn perform(to: &Arc<Shared>, output: Output) {
    match output {
        Output::LoadForAsk { ask, run } => {
            let events = read_all(to, run, 0).await;
            to.saw(&events);
            to.feed(Input::LoadedForAsk { ask, events });
        }
        Output::FindAsks(wants) => find(to, wants).await,
        Output::AnswerAsk { ask, run, answer } => answer_row(to, ask, run, &answer).await,
        _ => {}
    }
}

/// Claims questions of other nodes.
pub(super) async fn find(shared: &Arc<Shared>, wants: Vec<AskWant>) {
    let Some(relay) = shared.store.relay() else { return };
    for want in wants {
        let Ok(rows) = relay.claim_asks(&want, CLAIM, CLAIMS_MAX).await else { return };
        if rows.is_empty() {
            continue;
        }
        for row in &rows {
            let (ask, wait, to) = (row.ask, row.wait.to_std(), Arc::clone(shared));
            shared.spawn(async move {
                tokio::time::sleep(wait).await;
                to.feed(Input::AskOver(ask));
            });
        }
        shared.feed(Input::AsksFound(rows));
    }
}

/// Answers another node's question, and tells it so.
async fn answer_row(shared: &Shared, ask: AskId, run_id: RunId, answer: &AskAnswer) {
    let Some(relay) = shared.store.relay() else { return };
    match relay.answer_ask(ask, answer).await {
        Ok(true) => {
            let node = shared.config.node_id;
            let notice = Notice { run_id, tail: answer.seq, closed: false, node, asked: false };
            shared.dispatch.notify(notice).await;
        }
        Ok(false) => {}
        Err(error) => tracing::debug!(%error, "answer lost: the question is claimed again"),
    }
}
