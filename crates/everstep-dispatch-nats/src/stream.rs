//! The JetStream stream of task hints: made when it is missing.

use std::time::Duration;

use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use everstep_dispatch::Error;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::options::NatsOptions;
use crate::subject;

/// Least time between two attempts: everyone who misses the stream at one time shares one.
const RECREATE_INTERVAL: Duration = Duration::from_millis(250);

/// The stream of one deployment.
pub(crate) struct TaskStream {
    pub(crate) context: Context,
    config: Config,
    /// When it was last made again, and what came of it.
    last: Mutex<Option<(Instant, Result<(), Error>)>>,
}

impl TaskStream {
    pub(crate) fn new(context: Context, options: &NatsOptions) -> Self {
        let config = Config {
            name: options.stream.clone(),
            description: Some("Task hints of Everstep; may be deleted at any time.".to_owned()),
            subjects: vec![subject::of_all_queues(&options.subject_prefix)],
            retention: RetentionPolicy::WorkQueue,
            storage: StorageType::File,
            discard: DiscardPolicy::Old,
            max_messages: options.messages_max,
            max_age: options.age_max,
            num_replicas: options.replicas,
            // Hints carry no message ids: a run may need a second worker a moment after the first.
            duplicate_window: Duration::from_secs(1).min(options.age_max),
            ..Config::default()
        };
        Self { context, config, last: Mutex::new(None) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// Makes the stream after it was found missing, at most once per [`RECREATE_INTERVAL`]; within it, the
    /// last outcome is repeated.
    pub(crate) async fn recreate(&self) -> Result<(), Error> {
        let mut last = self.last.lock().await;
        if let Some((at, outcome)) = &*last
            && at.elapsed() < RECREATE_INTERVAL
        {
            return outcome.clone();
        }
        let outcome = self.create().await;
        match &outcome {
            Ok(()) => tracing::warn!(stream = %self.name(), "the NATS stream was missing and was made again"),
            Err(error) => tracing::warn!(stream = %self.name(), %error, "cannot make the NATS stream"),
        }
        *last = Some((Instant::now(), outcome.clone()));
        outcome
    }

    /// Makes the stream, or sees that the one that is there will do.
    ///
    /// # Errors
    /// [`Error::Refused`] if an operator has to act, else [`Error::Unavailable`].
    pub(crate) async fn create(&self) -> Result<(), Error> {
        let Err(err) = self.context.create_stream(self.config.clone()).await else { return Ok(()) };
        let name = self.name();
        match err.kind() {
            // Made with other limits, by an operator or another version: not ours to change.
            CreateStreamErrorKind::JetStream(code) if code.error_code() == ErrorCode::STREAM_NAME_EXIST => {
                self.check_existing().await
            }
            CreateStreamErrorKind::JetStream(code)
                if [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT]
                    .contains(&code.error_code()) =>
            {
                Err(Error::Refused(
                    "JetStream is not enabled for this NATS account; enable it there".to_owned(),
                ))
            }
            CreateStreamErrorKind::JetStream(code)
                if code.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP =>
            {
                let subjects = self.config.subjects.join(", ");
                Err(Error::Refused(format!(
                    "another NATS stream already takes {subjects}; delete it, or choose another stream name \
                     and subject prefix"
                )))
            }
            CreateStreamErrorKind::InvalidStreamName | CreateStreamErrorKind::EmptyStreamName => Err(
                Error::Refused(format!("'{name}' cannot name a NATS stream; use letters, digits, - and _")),
            ),
            CreateStreamErrorKind::JetStreamUnavailable => Err(Error::Unavailable(
                "the NATS server answers without JetStream; start it with -js, or wait if it is starting"
                    .to_owned(),
            )),
            _ => Err(Error::Unavailable(format!("cannot make the NATS stream {name}: {err}"))),
        }
    }

    async fn check_existing(&self) -> Result<(), Error> {
        let name = self.name();
        let stream = self
            .context
            .get_stream(name)
            .await
            .map_err(|err| Error::Unavailable(format!("cannot look at the NATS stream {name}: {err}")))?;
        let config = &stream.cached_info().config;
        if config.retention != RetentionPolicy::WorkQueue || config.subjects != self.config.subjects {
            return Err(Error::Refused(format!(
                "the NATS stream {name} is not a work queue on {}; delete it (nothing is lost by that), or \
                 choose another stream name",
                self.config.subjects.join(", ")
            )));
        }
        Ok(())
    }
}
