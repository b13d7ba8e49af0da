//! Pulling one queue's hints.
//!
//! A pull first asks for what is there (up to its maximum, without waiting), and only if that is nothing
//! for one hint, waiting. Thus a busy queue is read in batches, an idle one answers at once, and no node
//! holds requests for more hints than somebody waits for. Each request is a fresh one with an expiry: a
//! consumer that went deaf with a lost connection is never relied on. What a dropped pull leaves behind
//! is used by the next one, or given back if none comes soon.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::ConsumerErrorKind;
use async_nats::jetstream::{AckKind, ErrorCode, Message};
use everstep_dispatch::Error;
use futures::{FutureExt, StreamExt};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::connection::Connection;
use crate::options::NatsOptions;
use crate::stream::TaskStream;
use crate::subject;

/// How long the server keeps a waiting request.
const WAIT_EXPIRES: Duration = Duration::from_secs(5);
/// How long the answer to a request may be overdue.
const ANSWER_GRACE: Duration = Duration::from_millis(1_500);
/// How long what a dropped pull left is kept for the next one.
const LEFTOVER_LINGER: Duration = Duration::from_millis(200);
/// How long the server remembers a consumer that nobody uses.
const CONSUMER_IDLE_MAX: Duration = Duration::from_secs(600);
/// Unacknowledged hints of one queue, over all nodes.
const ACK_PENDING_MAX: i64 = 20_000;

/// One queue, as this node pulls it.
pub(crate) struct Queue {
    subject: String,
    consumer: pull::Config,
    /// Pulls in progress.
    pulls: AtomicUsize,
    fetch: Mutex<Fetch>,
}

#[derive(Default)]
struct Fetch {
    consumer: Option<PullConsumer>,
    /// Makes the consumer, in a task of its own: pulls that are dropped sooner than that takes must not
    /// begin it again and again.
    making: Option<JoinHandle<Result<PullConsumer, Error>>>,
    request: Option<Request>,
    /// Delivered to this node, not yet returned by a pull.
    ready: VecDeque<Message>,
    /// The last request for what is there found nothing.
    drained: bool,
}

struct Request {
    kind: Kind,
    batch: pull::Batch,
    deadline: Instant,
    /// Count of lost connections when it was sent.
    sent_after: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What is there.
    Take,
    /// One, as soon as there is one.
    Wait,
}

/// A pull in progress; when the last one is dropped, what it left is given back after a while.
pub(crate) struct Pull {
    queue: Arc<Queue>,
}

impl Queue {
    pub(crate) fn new(subject: String, options: &NatsOptions) -> Self {
        let consumer = pull::Config {
            durable_name: Some(subject::consumer_of(&subject)),
            filter_subject: subject.clone(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: options.ack_wait,
            max_deliver: options.deliveries_max,
            max_ack_pending: ACK_PENDING_MAX,
            inactive_threshold: CONSUMER_IDLE_MAX,
            ..pull::Config::default()
        };
        Self { subject, consumer, pulls: AtomicUsize::new(0), fetch: Mutex::new(Fetch::default()) }
    }

    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    /// Nobody pulls, and nothing is held.
    pub(crate) fn is_idle(&self) -> bool {
        self.pulls.load(Ordering::SeqCst) == 0 && self.fetch.try_lock().is_ok_and(|fetch| !fetch.holds())
    }

    async fn give_back(&self) {
        tokio::time::sleep(LEFTOVER_LINGER).await;
        if self.pulls.load(Ordering::SeqCst) > 0 {
            return;
        }
        let mut fetch = self.fetch.lock().await;
        if let Some(mut request) = fetch.request.take() {
            while let Some(Some(Ok(message))) = request.batch.next().now_or_never() {
                fetch.ready.push_back(message);
            }
        }
        fetch.drained = false;
        let messages = std::mem::take(&mut fetch.ready);
        drop(fetch);
        for message in messages {
            if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
                tracing::debug!(%error, "cannot give a hint back; it comes again by itself");
            }
        }
    }
}

impl Pull {
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        queue.pulls.fetch_add(1, Ordering::SeqCst);
        Self { queue }
    }

    /// Waits for hints and takes up to `max`. Cancel safe: what was not returned stays with the queue.
    pub(crate) async fn next(
        &self,
        connection: &Connection,
        stream: &Arc<TaskStream>,
        max: usize,
    ) -> Result<Vec<Message>, Error> {
        let mut fetch = self.queue.fetch.lock().await;
        let mut disconnects = connection.disconnects();
        let mut failures = 0;
        loop {
            if let Some(messages) = fetch.take_ready(max) {
                return Ok(messages);
            }
            let outcome = match connection.check() {
                Ok(()) => fetch.step(&self.queue, stream, max, &mut disconnects).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => failures = 0,
                Err(error) => {
                    fetch.start_over();
                    failures += 1;
                    // The first failure is often a stream or consumer that has gone, which the next
                    // attempt makes again.
                    if fetch.ready.is_empty() && (failures > 1 || !connection.is_up()) {
                        return Err(error);
                    }
                    tracing::debug!(%error, subject = %self.queue.subject, "starting over with this queue");
                }
            }
        }
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        if self.queue.pulls.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        let holds_nothing = self.queue.fetch.try_lock().is_ok_and(|fetch| !fetch.holds());
        if !holds_nothing && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let queue = Arc::clone(&self.queue);
            runtime.spawn(async move { queue.give_back().await });
        }
    }
}

impl Fetch {
    fn holds(&self) -> bool {
        self.request.is_some() || !self.ready.is_empty()
    }

    /// Up to `max` hints, unless there are none or a running request is about to bring more.
    fn take_ready(&mut self, max: usize) -> Option<Vec<Message>> {
        let more = self.request.as_ref().is_some_and(|request| request.kind == Kind::Take);
        if self.ready.is_empty() || (more && self.ready.len() < max) {
            return None;
        }
        let count = self.ready.len().min(max);
        Some(self.ready.drain(..count).collect())
    }

    /// Forgets the consumer and the running request, but not what they brought.
    fn start_over(&mut self) {
        self.consumer = None;
        self.drained = false;
        if let Some(mut request) = self.request.take() {
            while let Some(Some(Ok(message))) = request.batch.next().now_or_never() {
                self.ready.push_back(message);
            }
        }
    }

    /// Sends a request if none is running, and waits for the next thing that it brings. Cancel safe: each
    /// await either has changed `self` when it returns, or is repeated by the next step.
    async fn step(
        &mut self,
        queue: &Queue,
        stream: &Arc<TaskStream>,
        max: usize,
        disconnects: &mut watch::Receiver<u64>,
    ) -> Result<(), Error> {
        let now = *disconnects.borrow_and_update();
        if self.request.as_ref().is_some_and(|request| request.sent_after != now) {
            self.start_over();
        }
        let Some(request) = &mut self.request else {
            let Some(consumer) = &self.consumer else {
                let config = &queue.consumer;
                let making = self
                    .making
                    .get_or_insert_with(|| tokio::spawn(make_consumer(config.clone(), Arc::clone(stream))));
                let made = making.await;
                self.making = None;
                let stopped = |_| Err(Error::Unavailable("this node is shutting down".to_owned()));
                self.consumer = Some(made.unwrap_or_else(stopped)?);
                return Ok(());
            };
            let kind = if self.drained { Kind::Wait } else { Kind::Take };
            self.request = Some(Request::send(consumer, kind, max, now).await?);
            return Ok(());
        };
        let event = tokio::select! {
            biased;
            event = request.batch.next() => event,
            _ = disconnects.changed() => {
                return Err(Error::Unavailable("the connection to NATS was lost during a pull".to_owned()));
            }
            () = sleep_until(request.deadline) => {
                return Err(Error::Unavailable("NATS did not answer a pull".to_owned()));
            }
        };
        let kind = request.kind;
        match event {
            Some(Ok(message)) => {
                self.ready.push_back(message);
                self.drained = false;
                if kind == Kind::Wait {
                    self.request = None;
                }
            }
            Some(Err(err)) => return Err(Error::Unavailable(format!("a pull failed: {err}"))),
            None => {
                self.request = None;
                self.drained = self.ready.is_empty();
            }
        }
        Ok(())
    }
}

impl Request {
    /// The request goes out with the last await, so one that was dropped before has not gone out.
    async fn send(consumer: &PullConsumer, kind: Kind, max: usize, sent_after: u64) -> Result<Self, Error> {
        let (batch, expires) = match kind {
            Kind::Take => (consumer.fetch().max_messages(max).messages().await, Duration::ZERO),
            Kind::Wait => {
                let wait = consumer.batch().max_messages(1).expires(WAIT_EXPIRES);
                (wait.messages().await, WAIT_EXPIRES)
            }
        };
        let batch = batch.map_err(|err| Error::Unavailable(format!("cannot send a pull: {err}")))?;
        Ok(Self { kind, batch, deadline: Instant::now() + expires + ANSWER_GRACE, sent_after })
    }
}

/// Makes the consumer, and before it the stream if that is missing.
async fn make_consumer(config: pull::Config, stream: Arc<TaskStream>) -> Result<PullConsumer, Error> {
    let create = || stream.context.create_consumer_on_stream(config.clone(), stream.name());
    let err = match create().await {
        Ok(consumer) => return Ok(consumer),
        Err(err) => err,
    };
    let failed =
        |err: &dyn std::fmt::Display| Error::Unavailable(format!("cannot make a NATS consumer: {err}"));
    match err.kind() {
        ConsumerErrorKind::JetStream(code) if code.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            stream.recreate().await?;
            create().await.map_err(|err| failed(&err))
        }
        _ => Err(failed(&err)),
    }
}
