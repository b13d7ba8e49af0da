//! Several attempts: what is asked again and after which wait, what is not, and who is asked next.

use std::time::{Duration, SystemTime};

use everstep_provider::{
    Chain, ChainError, Completed, ConfigError, OpenAiCompatible, OpenAiConfig, ProviderError,
};
use tokio::time::Instant;

use crate::clock::FrozenClock;
use crate::server::{Answer, FakeServer};
use crate::{config, good_answer, provider, refusing_address, request};

/// The longest wait of a chain, whatever a provider asks for.
const WAIT_MAX: Duration = Duration::from_secs(30);

fn alone(server: &FakeServer, attempts: u32) -> Result<Chain, ConfigError> {
    Ok(Chain::new(attempts).then(FrozenClock(provider(server.base_url())?), attempts))
}

/// The waits between the requests that a server got.
fn waits(server: &mut FakeServer) -> Vec<Duration> {
    let requests = server.requests();
    requests.windows(2).map(|pair| pair[1].at - pair[0].at).collect()
}

fn outcomes(result: &Result<Completed, ChainError>) -> Vec<&str> {
    let attempts = match result {
        Ok(completed) => &completed.attempts,
        Err(error) => &error.attempts,
    };
    attempts.iter().map(|attempt| attempt.outcome.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_asked_again_when_it_says() {
    let limited = |retry_after: &str| Answer::json(429, "").header("Retry-After", retry_after);
    let past = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH);
    let script = [
        limited("7"),
        limited("0"),
        limited(&past),
        limited("3600"),
        limited("Tue, 01 Jan 2999 00:00:00 GMT"),
        good_answer(),
    ];
    let mut server = FakeServer::start(script).await.unwrap();
    let completed = alone(&server, 6).unwrap().complete(&request()).await.unwrap();
    assert_eq!(completed.completion.text, "Storms form.");
    let expected = [Duration::from_secs(7), Duration::ZERO, Duration::ZERO, WAIT_MAX, WAIT_MAX];
    assert_eq!(waits(&mut server), expected);
}

#[tokio::test(start_paused = true)]
async fn a_failing_server_is_asked_again_with_growing_waits_and_then_given_up() {
    let script = [500, 502, 503, 500].map(|status| Answer::bare(status, "oh"));
    let mut server = FakeServer::start(script).await.unwrap();
    let began = Instant::now();
    let result = alone(&server, 4).unwrap().complete(&request()).await;
    assert_eq!(outcomes(&result), ["overloaded"; 4]);
    let error = result.unwrap_err();
    assert_eq!(error.last, ProviderError::Overloaded { status: 500, retry_after: None });
    assert!(error.to_string().contains("status 500"), "{error}");
    let waits = waits(&mut server);
    assert_eq!(waits.len(), 3);
    for (wait, full) in waits.iter().zip([500, 1_000, 2_000].map(Duration::from_millis)) {
        assert!((full * 3 / 4..=full).contains(wait), "{wait:?} of {full:?}");
    }
    assert_eq!(began.elapsed(), waits.iter().sum(), "nobody waits after the last attempt");
}

#[tokio::test(start_paused = true)]
async fn what_would_be_refused_again_is_asked_once() {
    for (status, kind) in [(400, "bad_request"), (401, "auth"), (404, "bad_request")] {
        let mut server = FakeServer::start([Answer::json(status, "no"), good_answer()]).await.unwrap();
        let began = Instant::now();
        let result = alone(&server, 5).unwrap().complete(&request()).await;
        assert_eq!(outcomes(&result), [kind]);
        assert_eq!(server.requests().len(), 1);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_or_senseless_answer_is_asked_again() {
    let script = [
        Answer::none(),
        Answer::json(200, r#"{"choices":["#).truncated(),
        Answer::json(200, "I am not JSON"),
        Answer::json(200, r#"{"error":{"message":"model is loading"}}"#),
        good_answer(),
    ];
    let mut server = FakeServer::start(script).await.unwrap();
    let result = alone(&server, 5).unwrap().complete(&request()).await;
    let expected = ["connect", "connect", "invalid_response", "invalid_response", "ok"];
    assert_eq!(outcomes(&result), expected);
    assert_eq!(waits(&mut server).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_next_provider_is_asked_and_the_answer_says_who_gave_it() {
    let limited = || Answer::json(429, "").header("Retry-After", 5);
    let mut first = FakeServer::start([limited(), limited()]).await.unwrap();
    let mut second = FakeServer::start([Answer::json(401, "who")]).await.unwrap();
    let mut third = FakeServer::start([good_answer()]).await.unwrap();
    let mut chain = Chain::new(10);
    for (server, model) in [(&first, "large"), (&second, "middle"), (&third, "small")] {
        let config = OpenAiConfig { model: model.to_owned(), ..config(server.base_url()) };
        chain = chain.then(FrozenClock(OpenAiCompatible::new(config).unwrap()), 2);
    }
    let began = Instant::now();
    let completed = chain.complete(&request()).await.unwrap();
    // One wait between the attempts of the first provider; a hop needs none.
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    assert_eq!(
        (completed.provider.as_str(), completed.completion.model.as_str()),
        ("openai", "small-1-2026")
    );
    let attempts: Vec<_> =
        completed.attempts.iter().map(|a| (a.attempt, a.model.as_str(), a.outcome.as_str())).collect();
    let expected = [
        (1, "large", "rate_limited"),
        (2, "large", "rate_limited"),
        (3, "middle", "auth"),
        (4, "small", "ok"),
    ];
    assert_eq!(attempts, expected);
    assert!(completed.attempts[2].message.contains("401"), "{:?}", completed.attempts[2]);
    assert_eq!(completed.attempts[3].message, "");
    assert_eq!([&mut first, &mut second, &mut third].map(|server| server.requests().len()), [2, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn the_budget_holds_over_all_providers_and_nobody_waits_once_it_is_spent() {
    let limited = || Answer::json(429, "").header("Retry-After", 9);
    let mut first = FakeServer::start([limited(), limited(), limited()]).await.unwrap();
    let mut last = FakeServer::start([limited(), limited()]).await.unwrap();
    let chain = Chain::new(3)
        .then(FrozenClock(provider(first.base_url()).unwrap()), 5)
        .then(FrozenClock(provider(last.base_url()).unwrap()), 5);
    let began = Instant::now();
    let result = chain.complete(&request()).await;
    assert_eq!(outcomes(&result), ["rate_limited"; 3]);
    assert_eq!([&mut first, &mut last].map(|server| server.requests().len()), [2, 1]);
    assert_eq!(began.elapsed(), Duration::from_secs(9), "one wait: between the two attempts of the first");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_is_tried_again_and_passed_over() {
    let (base_url, _taken) = refusing_address().unwrap();
    let server = FakeServer::start([good_answer()]).await.unwrap();
    let chain = Chain::new(5)
        .then(FrozenClock(provider(base_url).unwrap()), 2)
        .then(FrozenClock(provider(server.base_url()).unwrap()), 2);
    let result = chain.complete(&request()).await;
    assert_eq!(outcomes(&result), ["connect", "connect", "ok"]);
}

#[tokio::test]
async fn a_caller_that_leaves_ends_the_attempt_under_way() {
    let mut server = FakeServer::start([Answer::none().stalls()]).await.unwrap();
    let chain = Chain::new(3).then(provider(server.base_url()).unwrap(), 3);
    let question = request();
    tokio::select! {
        result = chain.complete(&question) => panic!("nobody answered, and yet: {result:?}"),
        () = server.stalled() => {}
    }
    server.hung_up().await;
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_chain_of_nobody_says_so() {
    let error = Chain::new(3).complete(&request()).await.unwrap_err();
    assert!(error.to_string().contains("the chain is empty"), "{error}");
    assert!(error.attempts.is_empty());
}
