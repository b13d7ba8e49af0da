//! The adapter itself: the port's calls, in terms of the other modules.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{ContextBuilder, Message};
use async_trait::async_trait;
use bytes::Bytes;
use everstep_dispatch::{Delivery, Dispatch, Error, HintQueue, Notice, TaskHint};

use crate::connection::Connection;
use crate::health::{Health, Way};
use crate::in_flight::InFlight;
use crate::notices::{Inbox, Outbox};
use crate::options::NatsOptions;
use crate::queue::{Pull, Queue};
use crate::stream::TaskStream;
use crate::{message, spans, subject};

/// Queues that are remembered; beyond it, idle ones are forgotten.
const QUEUES_KEPT: usize = 1_000;

/// Dispatch between nodes, over one NATS connection.
///
/// It reconnects for ever; while there is no connection, calls fail at once with [`Error::Unavailable`]. A
/// stream or consumer that has vanished is made again by the call that misses it.
pub struct NatsDispatch {
    options: NatsOptions,
    connection: Arc<Connection>,
    health: Health,
    stream: Arc<TaskStream>,
    queues: Mutex<HashMap<HintQueue, Arc<Queue>>>,
    in_flight: InFlight<Acker>,
    outbox: Outbox,
    inbox: tokio::sync::Mutex<Inbox>,
}

impl NatsDispatch {
    /// Connects to `url`, `nats://[user:password@|token@]host[:port]` or `tls://…`, or several servers of
    /// one cluster with commas between, and makes the stream if it is missing.
    ///
    /// # Errors
    /// [`Error::Refused`] if somebody has to change something (the address, the server's version or
    /// JetStream configuration, a stream in the way), [`Error::Unavailable`] if no server can be reached
    /// within [`NatsOptions::connect_timeout`]. Neither shows credentials.
    pub async fn connect(url: &str, options: NatsOptions) -> Result<Self, Error> {
        check_prefix(&options.subject_prefix)?;
        let connection = Arc::new(Connection::open(url, &options).await?);
        let context = ContextBuilder::new().timeout(options.request_timeout).build(connection.client.clone());
        let notice_subject = subject::of_notices(&options.subject_prefix);
        let inbox = Inbox::open(&connection, notice_subject.clone()).await?;
        let stream = Arc::new(TaskStream::new(context, &options));
        // The server handles a connection's messages in order: with the answer to this, the subscription
        // above is known to be in place.
        stream.create().await?;
        Ok(Self {
            outbox: Outbox::start(Arc::clone(&connection), notice_subject),
            inbox: tokio::sync::Mutex::new(inbox),
            in_flight: InFlight::new(options.ack_wait),
            queues: Mutex::new(HashMap::new()),
            health: Health::default(),
            stream,
            connection,
            options,
        })
    }

    fn queue(&self, key: &HintQueue) -> Result<Arc<Queue>, Error> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(key) {
            return Ok(Arc::clone(queue));
        }
        let subject = subject::of_queue(&self.options.subject_prefix, key)?;
        if queues.len() >= QUEUES_KEPT {
            // A second owner is a pull that is about to begin.
            queues.retain(|_, queue| Arc::strong_count(queue) > 1 || !queue.is_idle());
        }
        let queue = Arc::new(Queue::new(subject, &self.options));
        queues.insert(key.clone(), Arc::clone(&queue));
        Ok(queue)
    }

    async fn send(&self, subject: &str, headers: HeaderMap, payload: Bytes) -> Result<(), PublishError> {
        let context = &self.stream.context;
        let sending = async {
            let ack = if headers.is_empty() {
                context.publish(subject.to_owned(), payload).await?
            } else {
                context.publish_with_headers(subject.to_owned(), headers, payload).await?
            };
            ack.await.map(|_| ())
        };
        tokio::time::timeout(self.options.publish_timeout, sending)
            .await
            .unwrap_or_else(|_| Err(PublishError::new(PublishErrorKind::TimedOut)))
    }

    async fn publish_on(&self, subject: &str, hint: &TaskHint) -> Result<(), Error> {
        let (headers, payload) = message::encode_hint(hint);
        match self.send(subject, headers.clone(), payload.clone()).await {
            Err(err) if err.kind() == PublishErrorKind::StreamNotFound => {
                self.stream.recreate().await?;
                self.send(subject, headers, payload).await.map_err(|err| publish_failed(&err))
            }
            other => other.map_err(|err| publish_failed(&err)),
        }
    }

    /// Turns messages of `queue` into deliveries. Awaits nothing, so that a dropped pull cannot lose them
    /// here.
    fn deliver(&self, key: &HintQueue, queue: &Queue, messages: Vec<Message>) -> Vec<Delivery> {
        let mut deliveries = Vec::with_capacity(messages.len());
        for message in messages {
            let attempt = message.info().ok().and_then(|info| u64::try_from(info.delivered).ok());
            let (message, acker) = message.split();
            match message::decode_hint(key, message.headers.as_ref(), &message.payload) {
                Ok(hint) => {
                    let (token, attempt) = (self.in_flight.insert(acker), attempt.unwrap_or(1));
                    spans::received(&hint, attempt);
                    deliveries.push(Delivery { hint, token, attempt });
                }
                Err(problem) => {
                    let bytes = message.payload.len();
                    tracing::warn!(subject = %queue.subject(), bytes, %problem, "skipped a message");
                    tokio::spawn(async move { acknowledge(&acker).await });
                }
            }
        }
        deliveries
    }
}

#[async_trait]
impl Dispatch for NatsDispatch {
    async fn publish(&self, hint: TaskHint) -> Result<(), Error> {
        let subject = subject::of_queue(&self.options.subject_prefix, &hint.place())?;
        self.connection.check()?;
        let span = spans::send(&hint);
        let outcome = self.publish_on(&subject, &hint).await;
        spans::sent(span, &outcome);
        self.health.saw(Way::Out, &outcome);
        outcome
    }

    async fn pull(&self, queue: &HintQueue, max: usize) -> Result<Vec<Delivery>, Error> {
        let state = self.queue(queue)?;
        let pull = Pull::new(Arc::clone(&state));
        loop {
            let lost = self.connection.disconnects();
            let pulled = pull.next(&self.connection, &self.stream, max.max(1)).await;
            // What ended with its connection tells nothing of the present one.
            if pulled.is_ok() || (self.connection.is_up() && !lost.has_changed().unwrap_or(true)) {
                self.health.saw(Way::In, &pulled);
            }
            let deliveries = self.deliver(queue, &state, pulled?);
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
        }
    }

    async fn ack(&self, token: u64) {
        if let Some(acker) = self.in_flight.remove(token)
            && self.connection.is_up()
        {
            acknowledge(&acker).await;
        }
    }

    async fn notify(&self, notice: Notice) {
        if self.connection.is_up() {
            self.outbox.put(notice);
        }
    }

    async fn notices(&self) -> Result<Vec<Notice>, Error> {
        self.inbox.lock().await.next().await
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn is_connected(&self) -> bool {
        self.connection.is_up() && self.health.is_good()
    }
}

async fn acknowledge(acker: &Acker) {
    if let Err(error) = acker.ack().await {
        tracing::debug!(%error, "cannot acknowledge a hint; it comes again");
    }
}

fn publish_failed(err: &PublishError) -> Error {
    match err.kind() {
        PublishErrorKind::MaxPayloadExceeded => {
            Error::Refused("NATS takes no message as large as a hint: raise its max_payload".to_owned())
        }
        _ => Error::Unavailable(format!("cannot publish a hint: {err}")),
    }
}

fn check_prefix(prefix: &str) -> Result<(), Error> {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if prefix.len() <= 100 && prefix.split('.').all(word) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "'{prefix}' cannot begin NATS subjects; use up to 100 letters, digits, - and _, in words separated by dots"
    )))
}
