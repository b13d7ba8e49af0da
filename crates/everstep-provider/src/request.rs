//! What is asked of a provider, and what it answers.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ProviderError;

/// A question to a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionRequest {
    /// What to do.
    pub prompt: String,
    /// What to do it with.
    pub text: String,
    /// Longest answer, in tokens.
    pub max_output_tokens: u32,
    /// 0 for the most predictable answer.
    pub temperature: f32,
    /// Sentences that a summarizer which picks sentences should pick.
    pub sentences: usize,
}

/// A model's answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The answer.
    pub text: String,
    /// The model that gave it, as it calls itself.
    pub model: String,
    /// The vendor's id of the answer; may be empty.
    pub response_id: String,
    /// Why it ended; may be empty.
    pub finish_reason: String,
    /// Tokens read, if the vendor said.
    pub input_tokens: Option<u64>,
    /// Tokens written, if the vendor said.
    pub output_tokens: Option<u64>,
}

/// Something that answers.
#[async_trait]
pub trait Provider: std::fmt::Debug + Send + Sync {
    /// Its name in spans and records, such as `openai`.
    fn name(&self) -> &str;

    /// The model that it asks.
    fn model(&self) -> &str;

    /// Where it is asked; empty for one that needs no network.
    fn address(&self) -> &str {
        ""
    }

    /// Asks once.
    ///
    /// # Errors
    /// [`ProviderError`], which says whether asking again is worth it.
    async fn complete(&self, request: &CompletionRequest) -> Result<Completion, ProviderError>;
}
