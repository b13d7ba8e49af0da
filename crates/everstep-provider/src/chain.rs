//! Providers in order: attempts, backoff, and the reason for each hop.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{FutureExt, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value, global};
use serde::{Deserialize, Serialize};

use crate::attrs;
use crate::{Completion, CompletionRequest, Provider, ProviderError};

/// Longest wait between two attempts, whatever a provider asks for.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// One attempt, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// Who was asked.
    pub provider: String,
    /// Which model.
    pub model: String,
    /// Number over the whole chain, from 1.
    pub attempt: u32,
    /// `ok`, or the kind of error.
    pub outcome: String,
    /// What the error said; empty when it answered.
    pub message: String,
}

/// An answer, and how it came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completed {
    /// The answer.
    pub completion: Completion,
    /// Who gave it.
    pub provider: String,
    /// Every attempt, the last one being the answer.
    pub attempts: Vec<AttemptRecord>,
}

/// Nobody answered.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no provider answered; the last said: {last}")]
pub struct ChainError {
    /// The last error.
    pub last: ProviderError,
    /// Every attempt.
    pub attempts: Vec<AttemptRecord>,
}

/// Providers in the order in which they are asked.
#[derive(Debug, Default)]
pub struct Chain {
    links: Vec<(Box<dyn Provider>, u32)>,
    attempts_max: u32,
}

impl Chain {
    /// A chain that asks at most `attempts_max` times in all, hops included.
    pub fn new(attempts_max: u32) -> Self {
        Self { links: Vec::new(), attempts_max: attempts_max.max(1) }
    }

    /// Adds a provider that is asked at most `attempts` times before the next one is.
    #[must_use]
    pub fn then(mut self, provider: impl Provider + 'static, attempts: u32) -> Self {
        self.links.push((Box::new(provider), attempts.max(1)));
        self
    }

    /// What tells this chain's answers from another's: part of a cache key.
    pub fn identity(&self) -> String {
        self.links.iter().map(|(p, _)| format!("{}:{}", p.name(), p.model())).collect::<Vec<_>>().join(",")
    }

    /// Asks until somebody answers. Cancel safe: an attempt under way is given up.
    ///
    /// # Errors
    /// [`ChainError`] when nobody did.
    pub async fn complete(&self, request: &CompletionRequest) -> Result<Completed, ChainError> {
        let mut attempts = Vec::new();
        let mut last = ProviderError::Connect("the chain is empty".to_owned());
        for (index, (provider, tries)) in self.links.iter().enumerate() {
            // One budget over retries and hops; the last provider always gets its turn.
            let left = self.attempts_max.saturating_sub(attempts.len() as u32);
            let is_last = index + 1 == self.links.len();
            let turns = (*tries).min(if is_last { left.max(1) } else { left.saturating_sub(1) });
            for number in 0..turns {
                let attempt = attempts.len() as u32 + 1;
                let result = observed(provider.as_ref(), request, attempt).await;
                attempts.push(record(provider.as_ref(), attempt, &result));
                match result {
                    Ok(completion) => {
                        return Ok(Completed { completion, provider: provider.name().to_owned(), attempts });
                    }
                    Err(error) => {
                        let again = error.is_retryable() && number + 1 < turns;
                        let wait = error.retry_after().unwrap_or_else(|| backoff(number)).min(WAIT_MAX);
                        last = error;
                        if !again {
                            break;
                        }
                        tokio::time::sleep(wait).await;
                    }
                }
            }
        }
        Err(ChainError { last, attempts })
    }
}

/// 500 ms, doubling, with up to a quarter off so that many callers do not come at once.
fn backoff(number: u32) -> Duration {
    let full = 500u64 << number.min(6);
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    Duration::from_millis(full - u64::from(nanos) % (full / 4 + 1))
}

fn record(
    provider: &dyn Provider,
    attempt: u32,
    result: &Result<Completion, ProviderError>,
) -> AttemptRecord {
    AttemptRecord {
        provider: provider.name().to_owned(),
        model: provider.model().to_owned(),
        attempt,
        outcome: result.as_ref().map_or_else(ProviderError::kind, |_| "ok").to_owned(),
        message: result.as_ref().err().map(ToString::to_string).unwrap_or_default(),
    }
}

/// One attempt inside its span.
async fn observed(
    provider: &dyn Provider,
    request: &CompletionRequest,
    attempt: u32,
) -> Result<Completion, ProviderError> {
    let tracer = global::tracer("everstep-provider");
    let span = tracer
        .span_builder(format!("chat {}", provider.model()))
        .with_kind(SpanKind::Client)
        .with_attributes([
            KeyValue::new(attrs::OPERATION, "chat"),
            KeyValue::new(attrs::PROVIDER, provider.name().to_owned()),
            KeyValue::new(attrs::REQUEST_MODEL, provider.model().to_owned()),
            KeyValue::new(attrs::SERVER_ADDRESS, provider.address().to_owned()),
            KeyValue::new(attrs::ATTEMPT, i64::from(attempt)),
        ])
        .start_with_context(&tracer, &Context::current());
    let context = Context::current_with_span(span);
    let result = provider.complete(request).with_context(context.clone()).await;
    let span = context.span();
    match &result {
        Ok(completion) => {
            span.set_attribute(KeyValue::new(attrs::RESPONSE_MODEL, completion.model.clone()));
            span.set_attribute(KeyValue::new(attrs::RESPONSE_ID, completion.response_id.clone()));
            let reasons = Array::String(vec![StringValue::from(completion.finish_reason.clone())]);
            span.set_attribute(KeyValue::new(attrs::FINISH_REASONS, Value::Array(reasons)));
            if let (Some(input), Some(output)) = (completion.input_tokens, completion.output_tokens) {
                span.set_attribute(KeyValue::new(attrs::INPUT_TOKENS, input as i64));
                span.set_attribute(KeyValue::new(attrs::OUTPUT_TOKENS, output as i64));
            }
        }
        Err(error) => {
            span.set_attribute(KeyValue::new(attrs::ERROR_TYPE, error.kind()));
            span.set_status(Status::error(error.kind()));
        }
    }
    span.end();
    result
}
