//! Tests of the servers themselves, on real Postgres and NATS where they are installed.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use async_nats::jetstream;
use sqlx::{Connection as _, PgConnection};

use super::process::Process;
use super::{NatsServer, PostgresOptions, PostgresServer, is_available, locate, require};

async fn show(url: &str, setting: &'static str) -> anyhow::Result<String> {
    let mut connection = PgConnection::connect(url).await?;
    Ok(sqlx::query_scalar(setting).fetch_one(&mut connection).await?)
}

#[tokio::test]
async fn databases_of_one_postgres_are_separate() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let server = PostgresServer::shared()?;
    let (first, second) = (server.create_database().await?, server.create_database().await?);
    let mut connection = PgConnection::connect(&first).await?;
    sqlx::query("CREATE TABLE mine (id int)").execute(&mut connection).await?;
    let mut other = PgConnection::connect(&second).await?;
    let error = sqlx::query("SELECT id FROM mine").execute(&mut other).await.expect_err("not in this one");
    assert!(error.to_string().contains("does not exist"), "{error}");
    assert_eq!(show(&first, "SHOW fsync").await?, "off");
    Ok(())
}

#[tokio::test]
async fn options_reach_postgres() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let options = PostgresOptions {
        fsync: true,
        connections_max: 17,
        settings: vec![("lock_timeout".to_owned(), "1234ms".to_owned())],
    };
    let server = PostgresServer::start_with(options)?;
    let url = server.url("postgres");
    assert_eq!(show(&url, "SHOW fsync").await?, "on");
    assert_eq!(show(&url, "SHOW max_connections").await?, "17");
    assert_eq!(show(&url, "SHOW lock_timeout").await?, "1234ms");
    assert_eq!(show(&url, "SHOW listen_addresses").await?, "127.0.0.1");
    Ok(())
}

#[tokio::test]
async fn postgres_keeps_its_data_over_both_ways_to_die() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let mut server = PostgresServer::start()?;
    let url = server.create_database().await?;
    let mut connection = PgConnection::connect(&url).await?;
    sqlx::query("CREATE TABLE kept AS SELECT 7 AS id").execute(&mut connection).await?;
    assert!(server.start_again().is_err(), "a running server is not started twice");
    for kill in [PostgresServer::kill_9, PostgresServer::stop_immediate] {
        let (pid, port) = (server.pid(), server.port());
        kill(&mut server)?;
        assert!(sqlx::query("SELECT 1").execute(&mut connection).await.is_err(), "the connection is dead");
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody listens");
        server.start_again()?;
        assert_eq!(server.port(), port);
        assert_ne!(server.pid(), pid);
        connection = PgConnection::connect(&url).await?;
        let id: i32 = sqlx::query_scalar("SELECT id FROM kept").fetch_one(&mut connection).await?;
        assert_eq!(id, 7);
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_backend_takes_all_connections_along_and_postgres_recovers() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let server = PostgresServer::start()?;
    let mut victim = PgConnection::connect(&server.url("postgres")).await?;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut victim).await?;
    let pid = u32::try_from(pid)?;
    assert_eq!(server.backend_pids().await?, [pid]);
    let error = server.kill_backend(std::process::id()).expect_err("our own process is none of its own");
    assert!(error.to_string().contains("no process of this Postgres"), "{error}");
    server.kill_backend(pid)?;
    assert!(sqlx::query("SELECT 1").execute(&mut victim).await.is_err());
    assert_eq!(server.backend_pids().await?, Vec::<u32>::new());
    Ok(())
}

#[tokio::test]
async fn a_dropped_server_leaves_no_process_and_no_folder() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let server = PostgresServer::start()?;
    let folder = server.folder().to_path_buf();
    let port = server.port();
    assert!(folder.join("data/PG_VERSION").exists());
    let _open = PgConnection::connect(&server.url("postgres")).await?;
    drop(server);
    assert!(!folder.exists());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    Ok(())
}

async fn jetstream(server: &NatsServer) -> anyhow::Result<jetstream::Context> {
    Ok(jetstream::new(async_nats::connect(server.url()).await?))
}

#[tokio::test]
async fn nats_keeps_streams_unless_it_is_started_empty() -> anyhow::Result<()> {
    if !require("nats")? {
        return Ok(());
    }
    let mut server = NatsServer::start()?;
    let port = server.port();
    let config = || jetstream::stream::Config { name: "kept".to_owned(), ..Default::default() };
    jetstream(&server).await?.create_stream(config()).await?;
    assert!(server.start_again().is_err(), "a running server is not started twice");
    assert!(server.start_again_empty().is_err(), "nor wiped");
    server.kill_9()?;
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody listens");
    server.start_again()?;
    assert_eq!(server.port(), port);
    jetstream(&server).await?.get_stream("kept").await?;
    server.kill_9()?;
    server.start_again_empty()?;
    assert!(jetstream(&server).await?.get_stream("kept").await.is_err(), "the store was wiped");
    Ok(())
}

/// The guard is what ends servers of a test process that was killed: an orphan is simulated by a
/// process whose guard loses its pipe without having been dismissed.
#[test]
fn the_guard_ends_a_server_whose_test_process_died() -> anyhow::Result<()> {
    let folder = super::server_folder("guard")?;
    let path = folder.keep();
    let mut orphan =
        Process::spawn(Command::new("sh").args(["-c", "echo ready >&2; exec tail -f /dev/null"]), "ready")?;
    orphan.wait_ready(0, super::process::READY_WAIT)?;
    let mut guard = super::guard::Guard::start(&path)?;
    guard.watch(orphan.pid())?;
    guard.lose_pipe_and_wait()?;
    assert!(!path.exists(), "the folder is removed");
    orphan.wait_end()?;
    Ok(())
}

#[test]
fn a_server_that_does_not_start_says_why() -> anyhow::Result<()> {
    let broken = Process::spawn(Command::new("sh").args(["-c", "echo no such disk >&2; exit 3"]), "ready")?;
    let error = broken.wait_ready(0, super::process::READY_WAIT).expect_err("it has ended").to_string();
    assert!(error.contains("ended") && error.contains("no such disk"), "{error}");
    Ok(())
}

#[test]
fn a_missing_server_is_skipped_unless_required() -> anyhow::Result<()> {
    let found = Some(Path::new("/somewhere"));
    assert!(is_available("pg", found, "")?);
    assert!(is_available("pg", found, "pg,nats")?);
    assert!(!is_available("pg", None, "")?);
    assert!(!is_available("pg", None, "nats")?);
    let error = is_available("nats", None, "pg, nats").expect_err("it is required").to_string();
    assert!(error.contains("cargo xtask test"), "{error}");
    let error =
        is_available("pg", found, "pgg").expect_err("a typo must not turn the requirement off").to_string();
    assert!(error.contains("pgg"), "{error}");
    assert!(require("mysql").is_err());
    Ok(())
}

#[test]
fn versions_are_read_from_what_the_servers_print() {
    for (text, expected) in [
        ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", Some((15, 18))),
        ("postgres (PostgreSQL) 18beta1", Some((18, 0))),
        ("nats-server: v2.15.1\n", Some((2, 15))),
        ("17", Some((17, 0))),
        ("no version", None),
    ] {
        assert_eq!(locate::parse_version(text), expected, "{text}");
    }
}
