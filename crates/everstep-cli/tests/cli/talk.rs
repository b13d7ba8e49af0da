//! Signals, queries and updates from the command line, also for runs that are started for them: the server and the
//! clients are processes, the worker is the test's own.

use everstep::{Ctx, Refused, StepError, Worker, WorkflowError, select};
use everstep_tests::cluster::RunningWorker;

use crate::support::{Cli, Running, everstep, folder};

/// Adds up until somebody pays; thirteen brings bad luck.
async fn cart(ctx: Ctx, first: Option<u32>) -> Result<u32, WorkflowError> {
    let items = ctx.state(first.unwrap_or_default());
    ctx.on_query("items", {
        let items = items.clone();
        move |(): ()| Ok(items.get())
    });
    let agrees = |n: &u32| if *n > 0 { Ok(()) } else { Err(Refused::new("must be positive")) };
    ctx.on_update("add", agrees, {
        let items = items.clone();
        move |ctx: Ctx, n: u32| {
            let items = items.clone();
            async move {
                let reserve = move || async move {
                    if n == 13 { Err(StepError::new("Unlucky", "13").non_retryable()) } else { Ok(n) }
                };
                items.set(items.get() + ctx.step("reserve", reserve).await?);
                Ok(items.get())
            }
        }
    });
    let paid = select! {
        paid = ctx.signal::<bool>("paid") => paid?,
        _ = ctx.canceled() => false,
    };
    ctx.updates_finished().await;
    Ok(if paid { items.get() } else { 0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_asked_and_told_things() -> anyhow::Result<()> {
    let folder = folder()?;
    let server = Running::server(everstep(folder.path(), &["dev", "--port", "0"])).await?;
    let cli = Cli { folder: folder.path(), address: &server.address };
    let _worker = RunningWorker::start(Worker::builder(&server.address).register("cart", cart))?;
    cli.does(&["run", "start", "cart", "--workflow-id", "c"], &[]).await?;
    cli.does(&["run", "update", "c", "add", "--input", "5"], &["5\n"]).await?;
    cli.refuses(1, &["run", "update", "c", "add", "--input", "0"], &["must be positive", "UPDATE_REJECTED"])
        .await?;
    cli.refuses(1, &["run", "update", "c", "sum"], &["'sum'", "this run has: add", "UPDATE_REJECTED"])
        .await?;
    cli.refuses(1, &["run", "update", "c", "add", "--input", "13"], &["the update failed: Unlucky"]).await?;
    // One id, one update, whoever asks and whatever he waits for.
    let seven = ["run", "update", "c", "add", "--input", "2", "--id", "u1"];
    assert_eq!(cli.does(&[&seven[..], &["--wait", "accepted"]].concat(), &[]).await?.stdout, "u1\n");
    cli.does(&seven, &["7\n"]).await?;
    cli.does(&[&seven[..], &["-o", "json"]].concat(), &["7\n"]).await?;
    let other = ["run", "update", "c", "add", "--input", "3", "--id", "u1"];
    cli.refuses(1, &other, &["IDEMPOTENCY_MISMATCH"]).await?;

    cli.does(&["run", "query", "c", "items"], &["7\n"]).await?;
    cli.does(&["run", "query", "c", "everstep.waits", "-o", "jsonl"], &["\"paid\"", "talk.rs"]).await?;
    cli.refuses(1, &["run", "query", "c", "sum"], &["'sum'", "this run has: items", "QUERY_FAILED"]).await?;
    cli.refuses(1, &["run", "query", "none", "items"], &["'none'", "RUN_NOT_FOUND"]).await?;
    for wait in ["0s", "61s", "soon"] {
        cli.refuses(2, &["run", "query", "c", "items", "--timeout", wait], &["--timeout", wait]).await?;
        cli.refuses(2, &["run", "update", "c", "add", "--timeout", wait], &["--timeout", wait]).await?;
    }
    cli.refuses(2, &["run", "update", "c", "add", "--input", "two"], &["'two' is not JSON", "quotes"])
        .await?;

    let paid = ["run", "signal", "c", "paid", "--input", "true", "--request-id", "s1"];
    cli.does(&paid, &[]).await?;
    cli.does(&["run", "result", "c"], &["7\n"]).await?;
    cli.does(&paid, &[]).await?;
    cli.does(&seven, &["7\n"]).await?;
    cli.does(&["run", "query", "c", "items"], &["7\n"]).await?;
    cli.refuses(1, &["run", "update", "c", "add", "--input", "1"], &["RUN_CLOSED"]).await?;
    cli.refuses(1, &["run", "signal", "c", "paid"], &["RUN_CLOSED"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_or_an_update_brings_its_run_along() -> anyhow::Result<()> {
    let folder = folder()?;
    let server = Running::server(everstep(folder.path(), &["dev", "--port", "0"])).await?;
    let cli = Cli { folder: folder.path(), address: &server.address };
    let _worker = RunningWorker::start(Worker::builder(&server.address).register("cart", cart))?;
    let start = ["--start", "cart", "--start-input", "10"];
    let runs = async |id: &str| -> anyhow::Result<usize> {
        let listed = cli.does(&["run", "list", "-o", "jsonl"], &[]).await?;
        Ok(listed.stdout.lines().filter(|line| line.contains(&format!("\"workflow_id\":\"{id}\""))).count())
    };

    let paid = [&["run", "signal", "s", "paid", "--input", "true", "--request-id", "r"], &start[..]].concat();
    cli.does(&paid, &[]).await?;
    cli.does(&["run", "result", "s"], &["10\n"]).await?;
    cli.does(&["run", "history", "s", "--after", "1"], &["2  ", "SignalReceived"]).await?;
    cli.does(&paid, &[]).await?;
    assert_eq!(runs("s").await?, 1, "a repeat starts nothing");
    let unpaid =
        [&["run", "signal", "s", "paid", "--input", "false", "--request-id", "r"], &start[..]].concat();
    cli.refuses(1, &unpaid, &["IDEMPOTENCY_MISMATCH"]).await?;

    let add = [&["run", "update", "u", "add", "--input", "5", "--id", "u1"], &start[..]].concat();
    assert_eq!(cli.does(&[&add[..], &["--wait", "accepted"]].concat(), &[]).await?.stdout, "u1\n");
    cli.does(&add, &["15\n"]).await?;
    cli.does(&["run", "update", "u", "add", "--input", "1", "--start", "cart"], &["16\n"]).await?;
    assert_eq!(runs("u").await?, 1);
    let none = ["run", "update", "v", "add", "--input", "0", "--start", "cart"];
    cli.refuses(1, &none, &["must be positive", "UPDATE_REJECTED"]).await?;
    cli.does(&["run", "show", "v"], &["running"]).await?;
    let lonely = ["run", "update", "w", "add", "--start", "nobody-has-this", "--timeout", "100ms"];
    cli.refuses(1, &lonely, &["'nobody-has-this'", "NO_WORKER"]).await?;

    // A run id names no run that could be started.
    let shown = cli.does(&["run", "list", "--limit", "1", "-o", "jsonl"], &[]).await?.stdout;
    let run_id = serde_json::from_str::<serde_json::Value>(&shown)?["run_id"].as_str().map(ToOwned::to_owned);
    let run_id = run_id.unwrap_or_default();
    cli.refuses(2, &["run", "signal", &run_id, "paid", "--start", "cart"], &[&run_id, "workflow id"]).await?;
    cli.refuses(2, &["run", "signal", "x", "paid", "--start-input", "1"], &["--start"]).await?;
    Ok(())
}
