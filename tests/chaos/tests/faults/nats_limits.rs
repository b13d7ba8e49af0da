//! F27: NATS refuses what it took before: it has no room for a message, revokes a right, or has lost its stream. Runs
//! go on by the sweep, and the node says that dispatch is ill and why.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use everstep_chaos::case::{Case, Options};
use everstep_chaos::pace;
use everstep_chaos::scrape::get;
use everstep_chaos::topology::{StoreKind, blocking, held};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::support::{LONG, drop_case, has_servers, layout, passes};

/// Whoever has no credentials has rights of their own, which can be revoked one by one.
const OPEN: &str = "authorization { users = [ { user: nobody, password: nobody } ] }\nno_auth_user: nobody\n";

/// What an operator may do to NATS while it runs, and what the nodes then say: before and after the restart that the
/// configuration above takes. The second is no trouble at all.
const CONFIGURATIONS: [(&str, &str, &str); 4] = [
    ("max_payload", "max_payload: 64\n", "raise its max_payload"),
    ("small_payload", "max_payload: 65536\n", ""),
    (
        "login_revoked",
        "authorization { users = [ { user: somebody, password: else } ] }\n",
        "authorization violation",
    ),
    (
        "rights_revoked",
        "authorization { users = [ { user: nobody, password: nobody, \
         permissions = { publish = { deny = [\"everstep.>\", \"$JS.API.>\"] } } } ] }\nno_auth_user: nobody\n",
        "permissions violation",
    ),
];

async fn configure(case: &Case, text: &'static str, restart: bool) -> anyhow::Result<()> {
    let backend = case.topology().backend.clone().context("NATS")?;
    blocking(move || {
        let mut nats = held(&backend.nats);
        if restart {
            nats.kill_9()?;
        }
        nats.configure(text)?;
        if restart { nats.start_again() } else { Ok(()) }
    })
    .await
}

/// Takes something away, sees that runs go on, and gives it back.
async fn revoke(
    case: &Case,
    (name, text, reason): (&str, &'static str, &str),
    whole: &'static str,
) -> anyhow::Result<()> {
    configure(case, text, false).await?;
    if !reason.is_empty() {
        dispatch(case, false).await?;
    }
    case.wait_moved(30, LONG).await?;
    // What comes in may fail first, and says something else.
    let said = || Ok(logs(case)?.to_lowercase().contains(reason));
    pace::wait_for(&format!("the logs say {reason:?}"), LONG, said).await?;
    configure(case, whole, false).await?;
    dispatch(case, true).await?;
    case.count(name, true);
    case.wait_moved(20, LONG).await
}

/// Waits until some node says so of dispatch, or all do.
async fn dispatch(case: &Case, up: bool) -> anyhow::Result<()> {
    let said = format!("everstep_dispatch_up {}", u8::from(up));
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let asking = async {
        loop {
            let mut count = 0;
            for node in &case.topology().nodes {
                count += usize::from(get(node.port, "/metrics").await.is_ok_and(|text| text.contains(&said)));
            }
            if count >= if up { case.topology().nodes.len() } else { 1 } {
                return;
            }
            tick.tick().await;
        }
    };
    tokio::time::timeout(LONG, asking).await.with_context(|| format!("no {said} within {LONG:?}"))
}

fn logs(case: &Case) -> anyhow::Result<String> {
    let read = |node: &everstep_chaos::topology::Node| std::fs::read_to_string(node.process.program.log());
    Ok(case.topology().nodes.iter().map(read).collect::<Result<Vec<_>, _>>()?.concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_go_on_while_nats_refuses_what_it_took_before() -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    let layout = layout("f27", 127, StoreKind::Postgres);
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    let [first @ .., last] = CONFIGURATIONS;
    for change in first {
        revoke(&case, change, "").await.context(change.0)?;
    }
    configure(&case, OPEN, true).await?;
    dispatch(&case, true).await?;
    revoke(&case, last, OPEN).await.context(last.0)?;
    for times in 1..=3 {
        delete_stream(&case).await?;
        let made = |logs: String| logs.matches("was missing and was made again").count();
        pace::wait_for("the stream is made again", LONG, || Ok(made(logs(&case)?) >= times)).await?;
        case.wait_moved(20, LONG).await?;
        dispatch(&case, true).await?;
        case.count("stream_deleted", true);
    }
    passes(case).await?;
    drop_case(&folder)
}

async fn delete_stream(case: &Case) -> anyhow::Result<()> {
    let port = held(&case.topology().backend.as_ref().context("NATS")?.nats).port();
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    let words = b"CONNECT {\"verbose\":false}\r\nSUB answers 1\r\n\
                  PUB $JS.API.STREAM.DELETE.EVERSTEP_TASKS answers 0\r\n\r\n";
    stream.write_all(words).await?;
    let mut line = String::new();
    while !line.contains("\"success\":true") {
        line.clear();
        let read = tokio::time::timeout(LONG, stream.read_line(&mut line)).await;
        ensure!(read.context("NATS does not answer")?? > 0, "NATS broke off");
        ensure!(!line.contains("\"error\""), "{line}");
    }
    Ok(())
}
