//! What an operator reads when connecting cannot work.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use async_nats::jetstream;

use super::*;

async fn failure(url: &str, options: NatsOptions) -> Error {
    match NatsDispatch::connect(url, options).await {
        Ok(_) => panic!("connected to {url}"),
        Err(error) => error,
    }
}

#[track_caller]
fn says(error: &Error, words: &[&str]) {
    let text = format!("{error} {error:?}");
    for word in words {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
    assert!(!text.contains("s3cret"), "credentials in: {text}");
}

#[tokio::test]
async fn nobody_listens() -> Result<()> {
    // Bound and dropped: a port that was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let begun = Instant::now();
    let error = failure(&format!("nats://user:s3cret@{address}"), NatsOptions::default()).await;
    says(&error, &["Unavailable", &address.to_string(), "refused"]);
    assert!(begun.elapsed() < Duration::from_secs(8));
    Ok(())
}

#[tokio::test]
async fn somebody_listens_and_says_nothing() -> Result<()> {
    let mute = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = mute.local_addr()?;
    let options = NatsOptions { connect_timeout: Duration::from_millis(500), ..NatsOptions::default() };
    let error = failure(&format!("nats://s3cret@{address}"), options).await;
    says(&error, &["Unavailable", &address.to_string()]);
    Ok(())
}

#[tokio::test]
async fn wrong_address_or_names() {
    for (url, word) in [("", "empty"), ("http://u:s3cret@host", "scheme"), ("nats://u:s3cret@host:x", "port")]
    {
        says(&failure(url, NatsOptions::default()).await, &["Refused", word]);
    }
    for prefix in ["", "a..b", "a.*", "a b", "ä"] {
        let options = NatsOptions { subject_prefix: prefix.to_owned(), ..NatsOptions::default() };
        says(&failure("nats://127.0.0.1:1", options).await, &["Refused", "cannot begin NATS subjects"]);
    }
    let options = NatsOptions { credentials_file: Some("missing.creds".into()), ..NatsOptions::default() };
    says(&failure("nats://127.0.0.1:1", options).await, &["Refused", "missing.creds"]);
}

#[tokio::test]
async fn wrong_password() -> Result<()> {
    let Some(server) = Server::start_with(&["-js", "--user", "al@ice", "--pass", "r/ght"])? else {
        return Ok(());
    };
    for login in ["", "al%40ice:s3cret@", "s3cret@"] {
        let error = failure(&format!("nats://{login}{}", server.address()), NatsOptions::default()).await;
        says(&error, &["Unavailable", &server.address(), "check the credentials"]);
    }
    let url = format!("nats://al%40ice:r%2Fght@{}", server.address());
    NatsDispatch::connect(&url, NatsOptions::default()).await?;
    Ok(())
}

/// What was logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Even at the finest level, the client library's included. One thread, so that the log holds everything.
#[tokio::test]
async fn credentials_are_never_logged() -> Result<()> {
    let Some(server) = Server::start_with(&["-js", "--user", "alice", "--pass", "c4nary"])? else {
        return Ok(());
    };
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // With one subscriber in a process, the thread that meets a log line first decides whether it is wanted,
    // and the other tests' threads want none. With two, all are asked.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let subscriber = tracing::Dispatch::new(subscriber);
    let logging = tracing_subscriber::util::SubscriberInitExt::set_default(subscriber);
    let key = queue("q");
    let node =
        NatsDispatch::connect(&format!("nats://alice:c4nary@{}", server.address()), NatsOptions::default())
            .await?;
    node.publish(hint(&key)).await?;
    let taken = pull_until(&node, &key).await?;
    node.ack(taken[0].token).await;
    failure(&format!("nats://alice:c4nary2@{}", server.address()), NatsOptions::default()).await;
    drop(logging);
    let log = String::from_utf8(log.0.lock().unwrap_or_else(PoisonError::into_inner).clone())?;
    assert!(log.contains("connected to NATS") && log.contains(&server.address()), "nothing logged: {log}");
    assert!(!log.contains("c4nary"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_token_is_enough() -> Result<()> {
    let Some(server) = Server::start_with(&["-js", "--auth", "t0ken"])? else { return Ok(()) };
    NatsDispatch::connect(&format!("nats://t0ken@{}", server.address()), NatsOptions::default()).await?;
    Ok(())
}

#[tokio::test]
async fn no_jetstream() -> Result<()> {
    let Some(server) = Server::start_with(&[])? else { return Ok(()) };
    says(&failure(&server.url(), NatsOptions::default()).await, &["-js"]);
    Ok(())
}

#[tokio::test]
async fn a_stream_in_the_way() -> Result<()> {
    let Some(server) = Server::start()? else { return Ok(()) };
    let admin = jetstream::new(async_nats::connect(server.url()).await?);
    let config = |name: &str, subject: &str| jetstream::stream::Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        ..jetstream::stream::Config::default()
    };
    admin.create_stream(config("OTHER", "everstep.>")).await?;
    says(&failure(&server.url(), NatsOptions::default()).await, &["Refused", "everstep.task.>", "delete it"]);
    admin.delete_stream("OTHER").await?;

    admin.create_stream(config("EVERSTEP_TASKS", "everstep.task.>")).await?;
    says(&failure(&server.url(), NatsOptions::default()).await, &["Refused", "not a work queue"]);

    let options = NatsOptions { stream: "a.b".to_owned(), ..NatsOptions::default() };
    says(&failure(&server.url(), options).await, &["Refused", "cannot name a NATS stream"]);
    Ok(())
}

/// An operator's other limits on the stream are left alone.
#[tokio::test]
async fn other_limits_are_kept() -> Result<()> {
    let Some(server) = Server::start()? else { return Ok(()) };
    connect(&server).await?;
    let admin = jetstream::new(async_nats::connect(server.url()).await?);
    let mut config = admin.get_stream("EVERSTEP_TASKS").await?.cached_info().config.clone();
    config.max_messages = 77;
    admin.update_stream(config).await?;
    let node = connect(&server).await?;
    let key = queue("q");
    let sent = hint(&key);
    node.publish(sent.clone()).await?;
    assert_eq!(pull_until(&*node, &key).await?[0].hint, sent);
    assert_eq!(admin.get_stream("EVERSTEP_TASKS").await?.cached_info().config.max_messages, 77);
    Ok(())
}
