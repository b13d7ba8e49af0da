//! The last link needs no network: it answers when all others fail, and says what it cannot work on.

use everstep_provider::{Chain, CompletionRequest, Extractive, ProviderError};

use crate::clock::FrozenClock;
use crate::server::{Answer, FakeServer};
use crate::{provider, refusing_address, request};

fn text(text: impl Into<String>) -> CompletionRequest {
    CompletionRequest { text: text.into(), sentences: 3, ..request() }
}

#[tokio::test(start_paused = true)]
async fn the_offline_summarizer_answers_when_no_server_does() {
    let (base_url, _taken) = refusing_address().unwrap();
    let server = FakeServer::start([Answer::bare(503, "oh"), Answer::json(401, "who")]).await.unwrap();
    let chain = Chain::new(4)
        .then(FrozenClock(provider(base_url).unwrap()), 1)
        .then(FrozenClock(provider(server.base_url()).unwrap()), 3)
        .then(Extractive, 1);
    let completed = chain.complete(&request()).await.unwrap();
    assert_eq!(completed.provider, "extractive");
    assert_eq!(completed.completion.model, "offline");
    assert_eq!(completed.completion.text, "Storms form over warm oceans when moist air rises.");
    let outcomes: Vec<_> = completed.attempts.iter().map(|a| a.outcome.as_str()).collect();
    assert_eq!(outcomes, ["connect", "overloaded", "auth", "ok"]);
}

#[tokio::test]
async fn it_is_asked_even_when_the_others_have_used_up_all_attempts() {
    let (base_url, _taken) = refusing_address().unwrap();
    let chain = Chain::new(1).then(provider(base_url).unwrap(), 3).then(Extractive, 1);
    assert_eq!(chain.complete(&request()).await.unwrap().provider, "extractive");
}

#[tokio::test]
async fn a_text_with_nothing_to_summarize_is_refused_with_the_reason() {
    // Every byte value in an order without meaning, as when a picture is read as text.
    let noise: Vec<u8> = (0..4_096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let cases = [
        (String::new(), "empty"),
        (" \r\n\t ".to_owned(), "empty"),
        (String::from_utf8_lossy(&noise).into_owned(), "binary"),
        ("\0".repeat(1_000), "binary"),
        ("0x00 0xff | 17 | 42\n".repeat(50), "no sentences"),
    ];
    let chain = Chain::new(3).then(Extractive, 3);
    for (input, reason) in cases {
        let error = chain.complete(&text(input)).await.unwrap_err();
        assert!(matches!(error.last, ProviderError::NothingToSummarize(_)), "{reason}: {error:?}");
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        assert_eq!(error.attempts.len(), 1, "asking again would not help");
    }
}

#[tokio::test]
async fn a_megabyte_of_text_is_summarized_in_sentences_of_the_text() {
    let long: String = (0..16_384)
        .map(|i| format!("Station {i} measured wind, rain and pressure of storm {} at noon. ", i % 97))
        .collect();
    assert!(long.len() > 1 << 20);
    let chain = Chain::new(1).then(Extractive, 1);
    let summary = chain.complete(&text(long.clone())).await.unwrap().completion.text;
    let sentences: Vec<&str> = summary.split_inclusive('.').map(str::trim).collect();
    assert_eq!(sentences.len(), 3, "{summary}");
    assert!(sentences.iter().all(|sentence| long.contains(sentence)), "{summary}");
    assert_eq!(chain.complete(&text(long)).await.unwrap().completion.text, summary);
}
