//! A durable workflow that summarizes a text.
//!
//! `check cache` → `call provider` → `store summary`. Each is a step: after a crash the run goes on behind
//! the last one that was recorded, and a provider is not asked again for an answer that is in the log.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use everstep::{Ctx, RetryPolicy, StepError, WorkerBuilder, WorkflowError};
use everstep_provider::{
    AttemptRecord, Chain, CompletionRequest, Extractive, FileCache, OpenAiCompatible, ProviderError,
    cache_key,
};
use serde::{Deserialize, Serialize};

/// The name under which the workflow is registered.
pub const WORKFLOW: &str = "summarize";

const PROMPT: &str = "Summarize the user's text in a few plain sentences.";
const ATTEMPTS_MAX: u32 = 5;
const CACHE_TTL: Duration = Duration::from_secs(7 * 24 * 3_600);

/// What to summarize.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Input {
    /// The text. Together with the rest at most 2 MiB as JSON.
    pub text: String,
    /// What the model is told; a default if absent.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Sentences that the offline summarizer picks; 5 if absent.
    #[serde(default)]
    pub sentences: Option<usize>,
}

/// A summary and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// The summary.
    pub summary: String,
    /// The provider that answered.
    pub answered_by: String,
    /// Its model.
    pub model: String,
    /// It was in the cache.
    pub cached: bool,
    /// Characters read.
    pub characters: usize,
    /// Every attempt that was made, failed ones included; empty when cached.
    pub attempts: Vec<AttemptRecord>,
}

/// What the workflow's steps work with.
#[derive(Debug)]
pub struct Summarizer {
    chain: Chain,
    cache: FileCache,
}

/// The summarizer cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The provider's settings are wrong.
    #[error(transparent)]
    Provider(#[from] everstep_provider::ConfigError),
    /// The cache folder cannot be used.
    #[error(transparent)]
    Cache(#[from] everstep_provider::CacheError),
}

impl Summarizer {
    /// The provider of the environment if there is one, then the offline summarizer.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn from_env(cache: &Path) -> Result<Self, SetupError> {
        let mut chain = Chain::new(ATTEMPTS_MAX);
        if let Some(openai) = OpenAiCompatible::from_env()? {
            chain = chain.then(openai, 3);
        }
        Ok(Self { chain: chain.then(Extractive, 1), cache: FileCache::open(cache)? })
    }

    fn key(&self, input: &Input) -> String {
        let sentences = input.sentences.unwrap_or(5).to_string();
        cache_key(&[
            &self.chain.identity(),
            input.prompt.as_deref().unwrap_or(PROMPT),
            &sentences,
            &input.text,
        ])
    }

    async fn ask(&self, input: &Input) -> Result<Output, StepError> {
        let request = CompletionRequest {
            prompt: input.prompt.clone().unwrap_or_else(|| PROMPT.to_owned()),
            text: input.text.clone(),
            max_output_tokens: 1_024,
            temperature: 0.0,
            sentences: input.sentences.unwrap_or(5),
        };
        match self.chain.complete(&request).await {
            Ok(done) => Ok(Output {
                summary: done.completion.text,
                answered_by: done.provider,
                model: done.completion.model,
                cached: false,
                characters: input.text.chars().count(),
                attempts: done.attempts,
            }),
            Err(error) => Err(match &error.last {
                ProviderError::NothingToSummarize(why) => {
                    StepError::new("NothingToSummarize", *why).non_retryable()
                }
                last if last.is_retryable() => StepError::new("Provider", error.to_string()),
                _ => StepError::new("Provider", error.to_string()).non_retryable(),
            }),
        }
    }
}

/// The workflow.
///
/// # Errors
/// Fails with kind `NothingToSummarize` when there is no text in the input.
pub async fn summarize(ctx: Ctx, input: Input, tools: Arc<Summarizer>) -> Result<Output, WorkflowError> {
    let input = Arc::new(input);
    let key = tools.key(&input);
    let (cache, lookup) = (Arc::clone(&tools), key.clone());
    let known: Option<Output> = ctx
        .step("check cache", move || {
            let (tools, key) = (Arc::clone(&cache), lookup.clone());
            async move { Ok::<_, StepError>(tools.cache.get(&key)?) }
        })
        .await?;
    if let Some(known) = known {
        return Ok(Output { cached: true, attempts: Vec::new(), ..known });
    }
    let asked = Arc::clone(&tools);
    let output: Output = ctx
        .step("call provider", move || {
            let (tools, input) = (Arc::clone(&asked), Arc::clone(&input));
            async move { tools.ask(&input).await }
        })
        .retry(RetryPolicy { maximum_attempts: 5, ..RetryPolicy::default() })
        .timeout(Duration::from_secs(300))
        .await?;
    let stored = output.clone();
    ctx.step("store summary", move || {
        let (tools, key, output) = (Arc::clone(&tools), key.clone(), stored.clone());
        async move { Ok::<_, StepError>(tools.cache.put(&key, &output, CACHE_TTL)?) }
    })
    .await?;
    Ok(output)
}

/// Hosts the workflow on a worker.
pub fn register(worker: WorkerBuilder, tools: Summarizer) -> WorkerBuilder {
    let tools = Arc::new(tools);
    worker.register(WORKFLOW, move |ctx: Ctx, input: Input| summarize(ctx, input, Arc::clone(&tools)))
}
