//! One attempt: what is sent, what is made of a good answer, and the type of each refusal.

use std::time::{Duration, SystemTime};

use everstep_provider::{Completion, OpenAiCompatible, OpenAiConfig, Provider, ProviderError};
use serde_json::json;

use crate::server::{Answer, FakeServer};
use crate::{KEY, config, good_answer, provider, request};

#[tokio::test]
async fn the_question_goes_to_the_path_with_the_key_the_model_and_the_text() {
    for slash in ["", "/"] {
        let mut server = FakeServer::start([good_answer()]).await.unwrap();
        provider(server.base_url() + slash).unwrap().complete(&request()).await.unwrap();
        let asked = server.requests().remove(0);
        assert_eq!(asked.line, "POST /v1/chat/completions HTTP/1.1");
        assert_eq!(asked.headers["authorization"], format!("Bearer {KEY}"));
        assert_eq!(asked.headers["content-type"], "application/json");
        let expected = json!({
            "model": "small-1",
            "messages": [
                {"role": "system", "content": "Summarize."},
                {"role": "user", "content": request().text},
            ],
            "max_tokens": 64,
            "temperature": 0.5,
        });
        assert_eq!(asked.body, expected);
    }
}

#[tokio::test]
async fn a_server_without_a_key_is_sent_none() {
    let mut server = FakeServer::start([good_answer()]).await.unwrap();
    let keyless = OpenAiConfig { api_key: String::new(), ..config(server.base_url()) };
    OpenAiCompatible::new(keyless).unwrap().complete(&request()).await.unwrap();
    let asked = server.requests().remove(0);
    assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
}

#[tokio::test]
async fn a_good_answer_is_read_with_its_model_and_usage() {
    let server = FakeServer::start([good_answer()]).await.unwrap();
    let completion = provider(server.base_url()).unwrap().complete(&request()).await.unwrap();
    let expected = Completion {
        text: "Storms form.".to_owned(),
        model: "small-1-2026".to_owned(),
        response_id: "chat-1".to_owned(),
        finish_reason: "stop".to_owned(),
        input_tokens: Some(21),
        output_tokens: Some(4),
    };
    assert_eq!(completion, expected);
}

#[tokio::test]
async fn what_small_servers_leave_out_or_write_otherwise_is_no_error() {
    let body = r#"{"choices":[{"message":{"content":"First."}},{"message":{"content":"Second."}}]}"#;
    for kind in ["application/json; charset=utf-8", "Application/JSON", "application/json ;charset=utf-8"] {
        let answer = Answer::bare(200, body).header("Content-Type", kind);
        let server = FakeServer::start([answer]).await.unwrap();
        let completion = provider(server.base_url()).unwrap().complete(&request()).await.unwrap();
        assert_eq!(completion, Completion { text: "First.".to_owned(), ..Completion::default() }, "{kind}");
    }
}

#[tokio::test]
async fn a_megabyte_of_text_arrives_whole() {
    let mut server = FakeServer::start([good_answer()]).await.unwrap();
    let mut long = request();
    long.text = "A \"quoted\" line about storms, é and 嵐.\n".repeat(1 << 15);
    assert!(long.text.len() > 1 << 20);
    provider(server.base_url()).unwrap().complete(&long).await.unwrap();
    let asked = server.requests().remove(0);
    assert!(asked.body["messages"][1]["content"] == long.text, "the text was changed on its way");
}

#[tokio::test]
async fn each_refusal_has_its_type_and_says_whether_to_ask_again() {
    let refused = |status, message: &str| ProviderError::BadRequest { status, message: message.to_owned() };
    let overloaded = |status| ProviderError::Overloaded { status, retry_after: None };
    let quota = r#"{"error":{"code":"insufficient_quota"}}"#;
    let cases = [
        (400, "no such field", refused(400, "no such field"), false),
        (401, "who are you", ProviderError::Auth(401), false),
        (402, "pay", ProviderError::Billing, false),
        (403, "not you", ProviderError::Auth(403), false),
        (404, "no such model", refused(404, "no such model"), false),
        (408, "slow", overloaded(408), true),
        (422, "", refused(422, ""), false),
        (429, "slow down", ProviderError::RateLimited { retry_after: None }, true),
        (429, quota, ProviderError::Billing, false),
        (500, "oh", overloaded(500), true),
        (502, "oh", overloaded(502), true),
        (503, "oh", overloaded(503), true),
    ];
    for (status, body, expected, retryable) in cases {
        let server = FakeServer::start([Answer::bare(status, body)]).await.unwrap();
        let error = provider(server.base_url()).unwrap().complete(&request()).await.unwrap_err();
        assert_eq!(error, expected, "{status} {body}");
        assert_eq!(error.is_retryable(), retryable, "{status} {body}");
    }
}

#[tokio::test]
async fn what_a_refusal_says_is_cut_short_and_made_printable() {
    let body = format!("line\n\u{1b}[31m{}", "x".repeat(100_000));
    let server = FakeServer::start([Answer::bare(400, body)]).await.unwrap();
    let error = provider(server.base_url()).unwrap().complete(&request()).await.unwrap_err();
    let ProviderError::BadRequest { message, .. } = &error else { panic!("{error:?}") };
    assert!(message.starts_with("line\\n\\u{1b}[31mxxx"), "{message}");
    assert!(message.len() < 300, "{} bytes", message.len());
}

#[tokio::test]
async fn retry_after_is_read_as_seconds_and_as_a_date() {
    let past = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH);
    let cases = [("7", Some(7)), ("0", Some(0)), (past.as_str(), Some(0)), ("soon", None), ("-1", None)];
    for (text, seconds) in cases {
        for status in [429, 503] {
            let answer = Answer::bare(status, "").header("Retry-After", text);
            let server = FakeServer::start([answer]).await.unwrap();
            let error = provider(server.base_url()).unwrap().complete(&request()).await.unwrap_err();
            assert_eq!(error.retry_after(), seconds.map(Duration::from_secs), "{status} {text}");
        }
    }
}

/// The wait ends at the date: it is the date less the moment of the answer, which lies inside the call.
#[tokio::test]
async fn a_retry_after_date_ends_the_wait_at_that_date() {
    let date = httpdate::parse_http_date("Tue, 01 Jan 2999 00:00:00 GMT").unwrap();
    let answer = Answer::bare(429, "").header("Retry-After", httpdate::fmt_http_date(date));
    let server = FakeServer::start([answer]).await.unwrap();
    let provider = provider(server.base_url()).unwrap();
    let before = SystemTime::now();
    let error = provider.complete(&request()).await.unwrap_err();
    let answered = date - error.retry_after().unwrap();
    assert!((before..=SystemTime::now()).contains(&answered), "{error:?}");
}

#[tokio::test]
async fn a_redirect_elsewhere_does_not_take_the_key_along() {
    let mut elsewhere = FakeServer::start([good_answer()]).await.unwrap();
    let target = elsewhere.base_url() + "/chat/completions";
    let server = FakeServer::start([Answer::bare(307, "").header("Location", target)]).await.unwrap();
    provider(server.base_url()).unwrap().complete(&request()).await.unwrap();
    let asked = elsewhere.requests().remove(0);
    assert!(!format!("{asked:?}").contains(KEY), "{asked:?}");
}

/// A proxy or a careless vendor may send back what it was sent; errors are kept in histories.
#[tokio::test]
async fn the_key_is_in_no_error_and_no_debug_output() {
    let echo = format!(r#"{{"error":"bad key {KEY}"}}"#);
    // The cut must not leave the beginning of a key behind.
    let at_the_cut = format!("{}{KEY}", "x".repeat(195));
    let script = [
        Answer::json(400, echo.clone()),
        Answer::json(401, echo.clone()),
        Answer::json(429, echo.clone()),
        Answer::json(500, echo.clone()),
        Answer::json(200, echo),
        Answer::bare(200, "").header("Content-Type", format!("text/{KEY}")),
        Answer::bare(400, at_the_cut),
        Answer::none(),
    ];
    let answers = script.len();
    let server = FakeServer::start(script).await.unwrap();
    let provider = provider(server.base_url()).unwrap();
    let mut printed = format!("{:?} {provider:?}", config(server.base_url()));
    for _ in 0..answers {
        let error = provider.complete(&request()).await.unwrap_err();
        printed.push_str(&format!(" {error} {error:?}"));
    }
    assert!(printed.contains("bad key"), "the message itself is kept: {printed}");
    assert!(!printed.contains("sk-"), "{printed}");
}

#[test]
fn a_configuration_that_cannot_work_is_refused_at_once() {
    let with_key = |key: &str| OpenAiConfig { api_key: key.to_owned(), ..config("http://localhost/v1") };
    let cases = [
        (config("localhost:8080/v1"), "EVERSTEP_OPENAI_BASE_URL"),
        (config("not a url"), "EVERSTEP_OPENAI_BASE_URL"),
        (config("ftp://localhost/v1"), "EVERSTEP_OPENAI_BASE_URL"),
        // As read from a file whose last line ends.
        (with_key(&format!("{KEY}\n")), "EVERSTEP_OPENAI_API_KEY"),
    ];
    for (config, variable) in cases {
        let error = OpenAiCompatible::new(config).unwrap_err();
        assert_eq!(error.variable, variable);
        assert!(!format!("{error} {error:?}").contains(KEY), "{error:?}");
    }
}
