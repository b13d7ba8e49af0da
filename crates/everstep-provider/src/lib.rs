//! LLM providers for Everstep workers.
//!
//! A [`Chain`] asks one [`Provider`] after the other, each with its own number of attempts, and says which
//! of them answered and why the others did not. [`OpenAiCompatible`] speaks the chat-completions shape that
//! most vendors and local servers understand; [`Extractive`] needs no network and no key: it picks the
//! sentences that say most. [`FileCache`] keeps answers. What is *not* here: durability, which is the
//! workflow's that calls this from a step.

mod attrs;
mod cache;
mod chain;
mod error;
mod extractive;
mod openai;
mod request;

pub use cache::{CacheError, FileCache, cache_key};
pub use chain::{AttemptRecord, Chain, ChainError, Completed};
pub use error::ProviderError;
pub use extractive::Extractive;
pub use openai::{ConfigError, OpenAiCompatible, OpenAiConfig};
pub use request::{Completion, CompletionRequest, Provider};
