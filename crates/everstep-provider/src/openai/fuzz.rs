//! What a provider may answer: understood or named, never a panic, and nothing of the key in an error.

use bolero::check;
use everstep_fuzz::{bent, bytes};

use super::*;

const ITERATIONS: usize = 20_000;
const KEY: &str = "sk-1";
const ANSWER: &[u8] =
    br#"{"id":"a","model":"m","choices":[{"message":{"content":"yes sk-1"},"finish_reason":"stop"}],
    "usage":{"prompt_tokens":1,"completion_tokens":18446744073709551615}}"#;

fn provider() -> OpenAiCompatible {
    OpenAiCompatible::new(OpenAiConfig {
        base_url: "http://127.0.0.1:9/v1".to_owned(),
        api_key: KEY.to_owned(),
        model: "m".to_owned(),
        timeout: Duration::from_secs(1),
    })
    .unwrap()
}

fn headers(kind: &[u8], retry: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [(CONTENT_TYPE, kind), (RETRY_AFTER, retry)] {
        headers.extend(HeaderValue::from_bytes(value).ok().map(|value| (name, value)));
    }
    headers
}

/// An error is kept in a history: it is short, on one line, and without the key.
fn fit_to_keep(error: &ProviderError) {
    let text = error.to_string();
    assert!(!text.contains(KEY) && !text.contains('\n') && text.len() < 4_096, "{text}");
}

#[test]
fn answers() {
    let provider = provider();
    let provider = std::panic::AssertUnwindSafe(&provider);
    check!().with_iterations(ITERATIONS).with_generator((bytes(40), bytes(6), bytes(6))).for_each(
        |(body, kind, retry)| {
            let body = bent(ANSWER, body);
            let headers = headers(&bent(b"application/json; charset=utf-8", kind), &bent(b"120", retry));
            match provider.understand(&headers, &body) {
                Ok(completion) => assert!(completion.text.len() <= body.len()),
                Err(error) => fit_to_keep(&error),
            }
        },
    );
}

#[test]
fn refusals() {
    let provider = provider();
    let provider = std::panic::AssertUnwindSafe(&provider);
    let date = b"Sun, 06 Nov 1994 08:49:37 GMT";
    check!().with_iterations(ITERATIONS).with_generator((bytes(40), bytes(12), 400_u16..600)).for_each(
        |(body, retry, status)| {
            let status = StatusCode::from_u16(*status).unwrap();
            let retry =
                if retry.len() % 2 == 0 { bent(date, retry) } else { bent(b"18446744073709551615", retry) };
            let error = provider.refused(status, &headers(b"text/html", &retry), &bent(ANSWER, body));
            fit_to_keep(&error);
            let _ = (error.is_retryable(), error.retry_after());
        },
    );
}
