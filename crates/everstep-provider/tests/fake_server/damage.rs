//! One attempt whose answer is no answer: wrong, too large, broken off, or never there.

use std::time::Duration;

use everstep_provider::{Provider, ProviderError};
use tokio::time::Instant;

use crate::clock::with_frozen_clock;
use crate::server::{Answer, FakeServer};
use crate::{KEY, TIMEOUT, provider, refusing_address, request};

/// The largest answer that the adapter reads.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

#[tokio::test]
async fn an_answer_that_is_none_is_not_understood_and_quoted() {
    let html = Answer::bare(200, "<html>Sign in</html>").header("content-type", "text/html");
    let cases = [
        (Answer::json(200, "{\"choices\": [{"), "choices"),
        (Answer::json(200, "I am not JSON"), "I am not JSON"),
        (Answer::json(200, [0xff, 0xfe, 0x00]), "\u{fffd}\u{fffd}\\0"),
        (Answer::json(200, ""), "not understood"),
        (Answer::json(200, "[]"), "[]"),
        (html, "text/html"),
        (Answer::bare(200, "{}"), "content type ''"),
        (Answer::json(200, r#"{"error":{"message":"model is loading"}}"#), "model is loading"),
        (Answer::json(200, r#"{"choices":[]}"#), "no choice"),
        (Answer::json(200, r#"{"choices":[{"message":{"content":null}}]}"#), "no choice"),
        (Answer::json(200, r#"{"choices":[{"message":{}}]}"#), "no choice"),
    ];
    for (answer, quoted) in cases {
        let server = FakeServer::start([answer]).await.unwrap();
        let error = provider(server.base_url()).unwrap().complete(&request()).await.unwrap_err();
        assert_eq!(error.kind(), "invalid_response", "{quoted}: {error:?}");
        assert!(error.is_retryable(), "{error:?}");
        assert!(error.to_string().contains(quoted), "{quoted}: {error}");
    }
}

#[tokio::test]
async fn an_answer_is_read_up_to_its_limit_and_no_further() {
    let mut body = br#"{"choices":[{"message":{"content":"Short."}}]}"#.to_vec();
    body.resize(ANSWER_BYTES_MAX, b' ');
    let largest = Answer::json(200, body.clone());
    body.push(b' ');
    let script = [largest, Answer::json(200, body.clone()), Answer::json(200, body).stalls()];
    let server = FakeServer::start(script).await.unwrap();
    let provider = provider(server.base_url()).unwrap();
    assert_eq!(provider.complete(&request()).await.unwrap().text, "Short.");
    let error = provider.complete(&request()).await.unwrap_err();
    assert_eq!(error, ProviderError::TooLarge(ANSWER_BYTES_MAX));
    assert!(!error.is_retryable(), "it would be as large again");
    // It leaves without waiting for the rest.
    let error = provider.complete(&request()).await.unwrap_err();
    assert_eq!(error, ProviderError::TooLarge(ANSWER_BYTES_MAX));
    server.hung_up().await;
}

#[tokio::test]
async fn a_connection_that_breaks_is_worth_another_attempt() {
    for answer in [Answer::none(), Answer::json(200, r#"{"choices":["#).truncated()] {
        let server = FakeServer::start([answer]).await.unwrap();
        let error = provider(server.base_url()).unwrap().complete(&request()).await.unwrap_err();
        assert_eq!(error.kind(), "connect", "{error:?}");
        assert!(error.is_retryable(), "{error:?}");
    }
}

/// The status has said it all; what was to follow is an explanation at most.
#[tokio::test]
async fn a_refusal_whose_body_breaks_off_or_never_ends_is_that_refusal_still() {
    let script = [
        Answer::json(401, "no such").truncated(),
        Answer::json(429, "slow").header("Retry-After", 7).truncated(),
        Answer::json(503, vec![b'x'; ANSWER_BYTES_MAX + 1]),
    ];
    let server = FakeServer::start(script).await.unwrap();
    let provider = provider(server.base_url()).unwrap();
    let mut errors = Vec::new();
    for _ in 0..3 {
        errors.push(provider.complete(&request()).await.unwrap_err());
    }
    let expected = [
        ProviderError::Auth(401),
        ProviderError::RateLimited { retry_after: Some(Duration::from_secs(7)) },
        ProviderError::Overloaded { status: 503, retry_after: None },
    ];
    assert_eq!(errors, expected);
}

#[tokio::test]
async fn an_address_where_nobody_listens_cannot_be_reached() {
    let (base_url, _taken) = refusing_address().unwrap();
    let error = provider(base_url).unwrap().complete(&request()).await.unwrap_err();
    assert_eq!(error.kind(), "connect", "{error:?}");
    assert!(error.is_retryable());
    assert!(error.to_string().to_lowercase().contains("refused"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_or_stops_in_the_middle_runs_into_the_timeout() {
    for answer in [Answer::none().stalls(), Answer::json(200, r#"{"choices":["#).stalls()] {
        let mut server = FakeServer::start([answer]).await.unwrap();
        let provider = provider(server.base_url()).unwrap();
        let asked_at = Instant::now();
        // The clock moves once the server has sent all that it will.
        let question = request();
        let (result, ()) = tokio::join!(provider.complete(&question), with_frozen_clock(server.stalled()));
        let error = result.unwrap_err();
        assert_eq!(error, ProviderError::Timeout(TIMEOUT));
        assert!(error.is_retryable());
        assert_eq!(asked_at.elapsed(), TIMEOUT);
        assert_eq!(server.requests().len(), 1);
        assert!(!error.to_string().contains(KEY));
        with_frozen_clock(server.hung_up()).await;
    }
}
