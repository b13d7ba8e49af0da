//! Faults of Postgres statements.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{Link, arrives, in_time, is_closed, is_reset, passes, silent};
use crate::{Direction, Fault, Mode, Rule, When};

/// A frame: its type, its length, its parts.
fn frame(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let length = u32::try_from(body.len() + 4).unwrap_or(4);
    [&[kind], &length.to_be_bytes()[..], &body].concat()
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
}

/// Bind to the unnamed portal, and execute it.
fn run(statement: &str) -> Vec<u8> {
    let bind = frame(b'B', &[b"\0", statement.as_bytes(), b"\0\0\0\0\0\0\0"]);
    [bind, frame(b'E', &[b"\0", &[0; 4]])].concat()
}

fn sync() -> Vec<u8> {
    frame(b'S', &[])
}

fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', &[sql.as_bytes(), b"\0"])
}

fn done() -> Vec<u8> {
    [frame(b'2', &[]), frame(b'C', &[b"INSERT 0 1\0"])].concat()
}

fn failed() -> Vec<u8> {
    frame(b'E', &[b"SERROR\0C40001\0\0"])
}

fn ready() -> Vec<u8> {
    frame(b'Z', &[b"I"])
}

/// A connection that has asked for TLS in vain, logged in, and prepared `append` and `renew`.
async fn prepared(link: &Link) -> anyhow::Result<(TcpStream, TcpStream)> {
    let (mut client, mut server) = link.connect().await?;
    passes(&mut client, &mut server, &[0, 0, 0, 8, 4, 210, 22, 47]).await?;
    passes(&mut server, &mut client, b"N").await?;
    passes(&mut client, &mut server, b"\0\0\0\x11\0\x03\0\0user\0me\0\0").await?;
    passes(&mut server, &mut client, &[frame(b'R', &[&[0; 4]]), ready()].concat()).await?;
    for (name, sql) in [("s1", "INSERT INTO events VALUES ($1)"), ("s2", "UPDATE sessions SET x = 1")] {
        passes(&mut client, &mut server, &[parse(name, sql), sync()].concat()).await?;
        passes(&mut server, &mut client, &[frame(b'1', &[]), ready()].concat()).await?;
    }
    Ok((client, server))
}

#[tokio::test]
async fn the_answer_of_one_statement_is_lost_behind_its_commit() -> anyhow::Result<()> {
    let link = Link::new(Mode::Postgres).await?;
    let (mut client, mut server) = prepared(&link).await?;
    let rule = link.proxy.add(Fault::LoseAnswer { sql: "INTO events".to_owned() })?;
    passes(&mut client, &mut server, &[run("s2"), sync()].concat()).await?;
    passes(&mut server, &mut client, &[done(), ready()].concat()).await?;
    assert_eq!(link.proxy.fired(rule), 0, "another statement");
    // In two parts: the first has to be whole before it goes on.
    let append = [run("s1"), sync()].concat();
    client.write_all(&append[..20]).await?;
    client.write_all(&append[20..]).await?;
    arrives(&mut server, &append).await?;
    server.write_all(&done()).await?;
    server.write_all(&frame(b'N', &[b"SNOTICE\0\0"])).await?;
    arrives(&mut client, &frame(b'N', &[b"SNOTICE\0\0"])).await?;
    assert_eq!(link.proxy.fired(rule), 0, "it is not committed before the server is ready");
    server.write_all(&ready()).await?;
    is_reset(&mut client, b"").await?;
    assert_eq!(link.proxy.fired(rule), 1);
    Ok(())
}

#[tokio::test]
async fn a_failed_statement_is_answered_after_all() -> anyhow::Result<()> {
    let link = Link::new(Mode::Postgres).await?;
    let (mut client, mut server) = prepared(&link).await?;
    let rule = link.proxy.add(Rule::from(Fault::LoseAnswer { sql: String::new() }).when(When::Nth(1)))?;
    passes(&mut client, &mut server, &[run("s1"), sync()].concat()).await?;
    let answer = [frame(b'2', &[]), failed(), ready()].concat();
    passes(&mut server, &mut client, &answer).await?;
    assert_eq!(link.proxy.fired(rule), 0);
    passes(&mut client, &mut server, &query("SELECT 1")).await?;
    passes(&mut server, &mut client, &[done(), ready()].concat()).await
}

#[tokio::test]
async fn a_simple_commit_is_lost_by_its_text() -> anyhow::Result<()> {
    let link = Link::new(Mode::Postgres).await?;
    let (mut client, mut server) = prepared(&link).await?;
    link.proxy.add(Rule::from(Fault::LoseAnswer { sql: "COMMIT".to_owned() }).direction(Direction::Up))?;
    // Pipelined behind another: that one's answer is not lost.
    passes(&mut client, &mut server, &[run("s1"), sync(), query("COMMIT")].concat()).await?;
    passes(&mut server, &mut client, &[done(), ready()].concat()).await?;
    server.write_all(&[frame(b'C', &[b"COMMIT\0"]), ready()].concat()).await?;
    is_reset(&mut client, b"").await
}

#[tokio::test]
async fn a_lost_request_never_reaches_the_server() -> anyhow::Result<()> {
    let link = Link::new(Mode::Postgres).await?;
    let (mut client, mut server) = prepared(&link).await?;
    let rule = Fault::LoseRequest { sql: "INTO events".to_owned() };
    let rule = link.proxy.add(Rule::from(rule).when(When::Nth(2)))?;
    passes(&mut client, &mut server, &[run("s1"), sync()].concat()).await?;
    passes(&mut server, &mut client, &[done(), ready()].concat()).await?;
    let append = [run("s1"), sync()].concat();
    client.write_all(&append).await?;
    is_reset(&mut client, b"").await?;
    let bind = append.len() - frame(b'E', &[b"\0", &[0; 4]]).len() - sync().len();
    // What stands before may have arrived or not; the execution has not.
    let mut read = Vec::new();
    let ended = in_time("the end", tokio::io::AsyncReadExt::read_to_end(&mut server, &mut read)).await?;
    assert!(ended.is_err() && read.len() <= bind, "{}", read.escape_ascii());
    assert_eq!(link.proxy.fired(rule), 1);
    Ok(())
}

#[tokio::test]
async fn a_late_request_is_executed_when_the_client_is_gone() -> anyhow::Result<()> {
    let link = Link::new(Mode::Postgres).await?;
    let (mut client, mut server) = prepared(&link).await?;
    link.proxy.add(Fault::LateRequest { sql: "INTO events".to_owned(), ms: 50 })?;
    let append = [run("s1"), sync()].concat();
    client.write_all(&append).await?;
    is_reset(&mut client, b"").await?;
    arrives(&mut server, &append).await?;
    is_closed(&mut server).await
}

#[tokio::test]
async fn silence_begins_at_a_statement_and_ends_with_its_rule() -> anyhow::Result<()> {
    let link = Link::new(Mode::Postgres).await?;
    let (mut client, mut server) = prepared(&link).await?;
    let (mut other, mut behind_other) = prepared(&link).await?;
    let rule =
        link.proxy.add(Rule::from(Fault::Silence { sql: "INTO events".to_owned() }).when(When::Nth(1)))?;
    passes(&mut client, &mut server, &[run("s2"), sync()].concat()).await?;
    passes(&mut server, &mut client, &[done(), ready()].concat()).await?;
    passes(&mut client, &mut server, &[run("s1"), sync()].concat()).await?;
    let answer = [done(), ready()].concat();
    server.write_all(&answer).await?;
    passes(&mut other, &mut behind_other, &[run("s1"), sync()].concat()).await?;
    passes(&mut behind_other, &mut other, &answer).await?;
    assert!(silent(&client));
    assert_eq!(link.proxy.fired(rule), 1);
    link.proxy.heal();
    arrives(&mut client, &answer).await
}

#[tokio::test]
async fn a_statement_that_was_closed_or_replaced_is_not_mistaken() -> anyhow::Result<()> {
    let link = Link::new(Mode::Postgres).await?;
    let (mut client, mut server) = prepared(&link).await?;
    let rule = link.proxy.add(Fault::LoseRequest { sql: "INTO events".to_owned() })?;
    let again = [frame(b'C', &[b"Ss1\0"]), parse("s1", "SELECT 2"), run("s1"), sync()].concat();
    passes(&mut client, &mut server, &again).await?;
    assert_eq!(link.proxy.fired(rule), 0);
    assert!(silent(&client));
    Ok(())
}
