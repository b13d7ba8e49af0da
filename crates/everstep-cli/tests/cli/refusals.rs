//! What goes wrong at a command line: one clear line, an exit code that says which kind, never a backtrace.

use std::path::Path;
use std::process::Stdio;

use everstep_tests::servers::{PostgresServer, require};
use tokio::net::TcpListener;

use crate::support::{Ended, Running, everstep, folder, run};

/// Fails as it should: with this code, and with a line that names each of `parts`.
#[track_caller]
fn assert_refused(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert!(ended.stdout.is_empty(), "data goes to stdout, complaints do not: {ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "'{part}' is missing: {ended:?}");
    }
    for bad in ["panicked", "RUST_BACKTRACE", "stack backtrace", "\u{1b}["] {
        assert!(!ended.stderr.contains(bad), "{ended:?}");
    }
}

#[tokio::test]
async fn wrong_words_are_answered_with_the_nearest_right_one() -> anyhow::Result<()> {
    let folder = folder()?;
    for (arguments, parts) in [
        (&["runn"][..], &["runn", "'run'"][..]),
        (&["run", "strat", "x"], &["strat", "'start'"]),
        (&["run", "list", "--namspace", "x"], &["--namspace", "'--namespace'"]),
        (&["run", "show"], &["<RUN>"]),
        (&["dev", "--port"], &["--port"]),
        (&["dev", "--port", "1", "--port", "2"], &["--port", "multiple times"]),
        (&["dev", "--port", "65536"], &["65536", "--port"]),
        (&["dev", "--port", "abc"], &["abc", "--port"]),
        (&["dev", "--lease", "tomorrow-ish"], &["tomorrow-ish", "--lease"]),
        (&["dev", "--lease", "999ms"], &["999ms", "--lease", "1s to 1h"]),
        (&["server", "--database-url", "sqlite:x.db", "--lease", "61m"], &["61m", "--lease", "1s to 1h"]),
        (&["server", "--database-url", "sqlite:x.db", "--request-mib", "7"], &["7", "--request-mib", "8.."]),
        (&["run", "list", "-o", "xml"], &["xml", "jsonl"]),
        (&["run", "list", "--address", "not an address"], &["not an address"]),
        (&["run", "list", "--status", "sleepy"], &["sleepy", "running"]),
        (&["server"], &["--database-url"]),
    ] {
        assert_refused(&run(folder.path(), arguments).await?, 2, parts);
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_file_is_named() -> anyhow::Result<()> {
    let folder = folder()?;
    std::fs::create_dir(folder.path().join("a-folder"))?;
    std::fs::write(folder.path().join("broken.json"), "{\"text\": ")?;
    std::fs::write(folder.path().join("large.json"), vec![b' '; 4 << 20])?;
    for (file, why) in [
        ("missing.json", "No such file"),
        ("a-folder", "regular file"),
        ("broken.json", "JSON"),
        ("large.json", "large"),
    ] {
        let ended = run(folder.path(), &["run", "start", "order", "--input", &format!("@{file}")]).await?;
        assert_refused(&ended, if why == "JSON" { 2 } else { 1 }, &[file, why]);
    }
    assert_refused(&run(folder.path(), &["run", "start", "order", "--input", "{nope"]).await?, 2, &["JSON"]);
    assert_refused(&run(folder.path(), &["demo", "summarize", "missing.txt"]).await?, 1, &["missing.txt"]);
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_there_is_exit_3() -> anyhow::Result<()> {
    let folder = folder()?;
    // Bound and never accepting anything else than the kernel's queue would be slow: a closed port is at once.
    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let address = format!("http://127.0.0.1:{port}");
    for arguments in [&["run", "list"][..], &["run", "show", "x"], &["run", "start", "order"]] {
        let mut command = everstep(folder.path(), arguments);
        let ended = command.args(["--address", &address]).output().await?.into();
        assert_refused(&ended, 3, &["everstep dev", "--address"]);
    }
    let url = format!("postgres://postgres:c4nary@127.0.0.1:{port}/x");
    let ended = run(folder.path(), &["migrate", "--database-url", &url]).await?;
    assert_refused(&ended, 3, &[&port.to_string()]);
    assert!(!ended.stderr.contains("c4nary"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_database_url_that_cannot_be_is_refused_without_its_secret() -> anyhow::Result<()> {
    let folder = folder()?;
    for (url, part) in [
        ("", "postgres://"),
        ("mysql://root:c4nary@localhost/x", "mysql://root:***@localhost/x"),
        ("sqlite:", "sqlite:"),
    ] {
        let ended = run(folder.path(), &["server", "--listen", "127.0.0.1:0", "--database-url", url]).await?;
        assert_refused(&ended, 2, &[part]);
        assert!(!ended.stderr.contains("c4nary"), "{ended:?}");
    }
    let broken = "postgres://me:c4nary@127.0.0.1:port/x";
    let ended = run(folder.path(), &["server", "--listen", "127.0.0.1:0", "--database-url", broken]).await?;
    assert_refused(&ended, 1, &["postgres://USER@HOST:PORT/NAME"]);
    assert!(!ended.stderr.contains("c4nary"), "{ended:?}");
    let beyond = ["server", "--listen", "0.0.0.0:0", "--database-url", "sqlite:x.db"];
    assert_refused(&run(folder.path(), &beyond).await?, 1, &["--insecure-allow-remote"]);
    Ok(())
}

#[tokio::test]
async fn a_database_that_refuses_says_why() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let (folder, server) = (folder()?, PostgresServer::shared()?);
    let fresh = server.create_database().await?;
    let listen = ["server", "--listen", "127.0.0.1:0", "--allow-fsync-off", "--database-url"];
    let serve = async |url: &str| run(folder.path(), &[&listen[..], &[url]].concat()).await;
    assert_refused(&serve(&fresh).await?, 1, &["everstep migrate"]);
    assert_refused(&serve(&server.url("no_such_database")).await?, 1, &["no_such_database"]);
    let mut pool = sqlx::PgPool::connect(&fresh).await?;
    everstep_store_postgres::migrate(&fresh).await?;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (99999999999999, 'of a later version', true, '\\x00', 0)",
    )
    .execute(&mut pool.acquire().await?.detach())
    .await?;
    assert_refused(&serve(&fresh).await?, 1, &["newer"]);
    sqlx::query("CREATE ROLE nobody_much LOGIN PASSWORD 'p@ss:/%'").execute(&pool).await?;
    pool = sqlx::PgPool::connect(&server.create_database().await?).await?;
    let name: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&pool).await?;
    let url = format!("postgres://nobody_much:p%40ss%3A%2F%25@127.0.0.1:{}/{name}", server.port());
    let ended = run(folder.path(), &["migrate", "--database-url", &url]).await?;
    assert_refused(&ended, 1, &["permission denied"]);
    Ok(())
}

#[tokio::test]
async fn a_configuration_file_is_taken_at_its_word() -> anyhow::Result<()> {
    let folder = folder()?;
    let write = |text: &str| std::fs::write(folder.path().join("everstep.toml"), text);
    for (text, parts) in [
        ("adress = \"http://127.0.0.1:1\"\n", &["everstep.toml", "adress"][..]),
        ("# a comment\nport = true\n", &["everstep.toml", "port"]),
        ("port = 1\nport = 2\n", &["everstep.toml", "2"]),
        ("port 1\n", &["everstep.toml", "1"]),
    ] {
        write(text)?;
        assert_refused(&run(folder.path(), &["run", "list"]).await?, 2, parts);
    }
    // Flag before environment before file.
    write("address = \"http://127.0.0.1:1\"\n")?;
    assert_refused(&run(folder.path(), &["run", "list"]).await?, 3, &["127.0.0.1:1"]);
    let mut command = everstep(folder.path(), &["run", "list"]);
    let ended = command.env("EVERSTEP_ADDRESS", "http://127.0.0.1:2").output().await?.into();
    assert_refused(&ended, 3, &["127.0.0.1:2"]);
    let mut command = everstep(folder.path(), &["run", "list", "--address", "http://127.0.0.1:3"]);
    let ended = command.env("EVERSTEP_ADDRESS", "http://127.0.0.1:2").output().await?.into();
    assert_refused(&ended, 3, &["127.0.0.1:3"]);
    // Set to nothing is as good as not set.
    let mut command = everstep(folder.path(), &["run", "list"]);
    let ended = command.env("EVERSTEP_ADDRESS", "").output().await?.into();
    assert_refused(&ended, 3, &["127.0.0.1:1"]);
    Ok(())
}

async fn dev(folder: &Path) -> anyhow::Result<Running> {
    Running::server(everstep(folder, &["dev", "--demo", "--port", "0"])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() -> anyhow::Result<()> {
    let folder = folder()?;
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    let port = taken.local_addr()?.port().to_string();
    assert_refused(&run(folder.path(), &["dev", "--port", &port]).await?, 1, &[&port, "in use"]);
    let first = dev(folder.path()).await?;
    let ended = run(folder.path(), &["dev", "--port", "0"]).await?;
    assert_refused(&ended, 3, &["everstep.db", "in use"]);
    assert_eq!(first.terminate().await?, Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dev_suggests_works_and_odd_ids_too() -> anyhow::Result<()> {
    let folder = folder()?;
    let node = dev(folder.path()).await?;
    let at = node.address.as_str();
    let input = r#"{"text": "Some text. It is short."}"#;
    for id in ["-dash", "--flag", "with space", "a/b"] {
        let flag = format!("--workflow-id={id}");
        let start = ["run", "start", "summarize", "--input", input, "--address", at, "--wait", &flag];
        let done = run(folder.path(), &start).await?;
        assert_eq!(done.code, Some(0), "{id:?}: {done:?}");
        let shown = run(folder.path(), &["run", "show", "--address", at, "-o", "json", "--", id]).await?;
        assert_eq!(shown.code, Some(0), "{id:?}: {shown:?}");
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout)?;
        assert_eq!(shown["workflow_id"], id);
    }
    let odd =
        ["run", "start", "summarize", "--input", input, "--address", at, "--workflow-id", "line\nbreak"];
    assert_refused(&run(folder.path(), &odd).await?, 1, &["workflow_id", "INVALID_ID"]);
    for command in ["list", "history"] {
        let mut arguments = vec!["run", command, "--address", at, "-o", "json"];
        arguments.extend(["--", "a/b"].iter().filter(|_| command == "history"));
        let done = run(folder.path(), &arguments).await?;
        assert_eq!(done.code, Some(0), "{done:?}");
        serde_json::from_str::<serde_json::Value>(&done.stdout)?;
    }
    let absent = run(folder.path(), &["run", "show", "--address", at, "no-such"]).await?;
    assert_refused(&absent, 1, &["no-such"]);
    // Ctrl-C while watching a run that waits for nobody.
    let start = ["run", "start", "nobody-has-this", "--address", at, "--workflow-id", "waits"];
    assert_eq!(run(folder.path(), &start).await?.code, Some(0));
    let mut command = everstep(folder.path(), &["run", "watch", "--address", at, "waits"]);
    assert_eq!(Running::watching(command.spawn()?).await?.interrupt().await?, Some(130));
    assert_eq!(node.terminate().await?, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_reader_that_has_enough_is_no_error() -> anyhow::Result<()> {
    let folder = folder()?;
    let mut command = everstep(folder.path(), &["completions", "bash"]);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    drop(child.stdout.take());
    let ended: Ended = child.wait_with_output().await?.into();
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    Ok(())
}
