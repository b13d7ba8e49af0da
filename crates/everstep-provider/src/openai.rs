//! The chat-completions shape: `POST {base}/chat/completions`.

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use serde::Deserialize;
use serde_json::json;

use crate::{Completion, CompletionRequest, Provider, ProviderError};

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How to reach a provider.
#[derive(Clone)]
pub struct OpenAiConfig {
    /// Up to and without `/chat/completions`, such as `https://api.openai.com/v1`.
    pub base_url: String,
    /// The key; empty for a local server without one. Never printed.
    pub api_key: String,
    /// The model to ask.
    pub model: String,
    /// Longest time for one attempt.
    pub timeout: Duration,
}

impl fmt::Debug for OpenAiConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiConfig")
            .field("base_url", &self.base_url)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// The configuration is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable} {problem}")]
pub struct ConfigError {
    /// The environment variable or field.
    pub variable: &'static str,
    /// What is wrong.
    pub problem: String,
}

/// A provider that speaks the chat-completions shape.
#[derive(Debug)]
pub struct OpenAiCompatible {
    config: OpenAiConfig,
    host: String,
    http: reqwest::Client,
}

impl OpenAiCompatible {
    /// A provider at an address.
    ///
    /// # Errors
    /// [`ConfigError`] for an address that is not an http or https URL, or a key that no header can hold.
    pub fn new(config: OpenAiConfig) -> Result<Self, ConfigError> {
        let bad = |variable, problem: String| ConfigError { variable, problem };
        let url = reqwest::Url::parse(&config.base_url)
            .map_err(|e| bad("EVERSTEP_OPENAI_BASE_URL", format!("is not a URL: {e}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad("EVERSTEP_OPENAI_BASE_URL", "must begin with http:// or https://".to_owned()));
        }
        // As when the last line end of a file came along.
        if HeaderValue::from_str(&config.api_key).is_err() {
            return Err(bad("EVERSTEP_OPENAI_API_KEY", "has a line end or control character".to_owned()));
        }
        // A process has one TLS provider; whoever was first is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(config.timeout)
            .build()
            .map_err(|e| bad("EVERSTEP_OPENAI_BASE_URL", e.to_string()))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        Ok(Self { config, host, http })
    }

    /// From `EVERSTEP_OPENAI_BASE_URL`, `_API_KEY` and `_MODEL`; `None` when neither address nor key is set.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_env() -> Result<Option<Self>, ConfigError> {
        let read = |name| std::env::var(name).ok().filter(|v: &String| !v.is_empty());
        let (base, key) = (read("EVERSTEP_OPENAI_BASE_URL"), read("EVERSTEP_OPENAI_API_KEY"));
        if base.is_none() && key.is_none() {
            return Ok(None);
        }
        let config = OpenAiConfig {
            base_url: base.unwrap_or_else(|| "https://api.openai.com/v1".to_owned()),
            api_key: key.unwrap_or_default(),
            model: read("EVERSTEP_OPENAI_MODEL").unwrap_or_else(|| "gpt-4o-mini".to_owned()),
            timeout: Duration::from_secs(60),
        };
        Self::new(config).map(Some)
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    id: String,
    #[serde(default)]
    model: String,
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

#[async_trait]
impl Provider for OpenAiCompatible {
    fn name(&self) -> &str {
        "openai"
    }

    fn model(&self) -> &str {
        &self.config.model
    }

    fn address(&self) -> &str {
        &self.host
    }

    async fn complete(&self, request: &CompletionRequest) -> Result<Completion, ProviderError> {
        let body = json!({
            "model": self.config.model,
            "messages": [
                {"role": "system", "content": request.prompt},
                {"role": "user", "content": request.text},
            ],
            "max_tokens": request.max_output_tokens,
            "temperature": request.temperature,
        });
        let url = format!("{}/chat/completions", self.config.base_url.trim_end_matches('/'));
        let mut call = self.http.post(url).json(&body);
        if !self.config.api_key.is_empty() {
            call = call.bearer_auth(&self.config.api_key);
        }
        let response = call.send().await.map_err(|e| self.broken(&e))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = self.read(response).await;
        if !status.is_success() {
            // The status says it all; a body that broke off only lacks the explanation.
            return Err(self.refused(status, &headers, &body.unwrap_or_default()));
        }
        self.understand(&headers, &body?)
    }
}

impl OpenAiCompatible {
    fn broken(&self, error: &reqwest::Error) -> ProviderError {
        if error.is_timeout() {
            return ProviderError::Timeout(self.config.timeout);
        }
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        ProviderError::Connect(cause.to_string())
    }

    async fn read(&self, mut response: reqwest::Response) -> Result<Vec<u8>, ProviderError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.broken(&e))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(ProviderError::TooLarge(ANSWER_BYTES_MAX));
            }
        }
        Ok(bytes)
    }

    fn refused(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> ProviderError {
        let code = status.as_u16();
        let retry_after = retry_after(headers);
        match code {
            401 | 403 => ProviderError::Auth(code),
            402 => ProviderError::Billing,
            // An account without funds is told so with the status of a rate limit.
            429 if String::from_utf8_lossy(body).contains("insufficient_quota") => ProviderError::Billing,
            429 => ProviderError::RateLimited { retry_after },
            408 | 500..=599 => ProviderError::Overloaded { status: code, retry_after },
            _ => ProviderError::BadRequest { status: code, message: self.excerpt(body) },
        }
    }

    fn understand(&self, headers: &HeaderMap, body: &[u8]) -> Result<Completion, ProviderError> {
        let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            let kind = self.excerpt(kind.as_bytes());
            return Err(ProviderError::InvalidResponse(format!("content type '{kind}'")));
        }
        let answer: Answer =
            serde_json::from_slice(body).map_err(|_| ProviderError::InvalidResponse(self.excerpt(body)))?;
        let choice = answer.choices.into_iter().next();
        let Some((text, finish_reason)) = choice.and_then(|c| Some((c.message.content?, c.finish_reason)))
        else {
            return Err(ProviderError::InvalidResponse("no choice with content".to_owned()));
        };
        Ok(Completion {
            text,
            model: answer.model,
            response_id: answer.id,
            finish_reason: finish_reason.unwrap_or_default(),
            input_tokens: answer.usage.as_ref().and_then(|u| u.prompt_tokens),
            output_tokens: answer.usage.as_ref().and_then(|u| u.completion_tokens),
        })
    }

    /// The beginning of what came, fit for an error: errors are kept in histories, and some servers send back
    /// the key that they were sent.
    fn excerpt(&self, bytes: &[u8]) -> String {
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        if !self.config.api_key.is_empty() {
            // Before the cut, which could leave half a key behind.
            text = text.replace(&self.config.api_key, "[key]");
        }
        text.chars().take(200).collect::<String>().escape_debug().to_string()
    }
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod fuzz;
