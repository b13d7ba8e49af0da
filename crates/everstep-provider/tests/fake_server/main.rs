//! The HTTP adapter and the chain against a server that answers from a script: what is sent, what is made of
//! each kind of answer, and who is asked next. No test here needs a network beyond the loopback address.

mod adapter;
mod chain;
mod clock;
mod damage;
mod offline;
mod server;
mod spans;

use std::time::Duration;

use everstep_provider::{CompletionRequest, ConfigError, OpenAiCompatible, OpenAiConfig};
use server::Answer;
use tokio::net::TcpSocket;

const KEY: &str = "sk-test-7f3a9c5e1b";
/// Longer than any wait of the chain, so that only the tests about it meet it.
const TIMEOUT: Duration = Duration::from_secs(60);

fn config(base_url: impl Into<String>) -> OpenAiConfig {
    OpenAiConfig {
        base_url: base_url.into(),
        api_key: KEY.to_owned(),
        model: "small-1".to_owned(),
        timeout: TIMEOUT,
    }
}

fn provider(base_url: impl Into<String>) -> Result<OpenAiCompatible, ConfigError> {
    OpenAiCompatible::new(config(base_url))
}

fn request() -> CompletionRequest {
    CompletionRequest {
        prompt: "Summarize.".to_owned(),
        text: "Storms form over warm oceans when moist air rises. Land offers storms no moist air."
            .to_owned(),
        max_output_tokens: 64,
        temperature: 0.5,
        sentences: 1,
    }
}

fn good_answer() -> Answer {
    Answer::json(
        200,
        r#"{"id":"chat-1","model":"small-1-2026","choices":[{"message":{"content":"Storms form."},
            "finish_reason":"stop"}],"usage":{"prompt_tokens":21,"completion_tokens":4}}"#,
    )
}

/// An address where nobody listens, and the socket that keeps others from taking it.
fn refusing_address() -> std::io::Result<(String, TcpSocket)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    Ok((format!("http://{}/v1", socket.local_addr()?), socket))
}
