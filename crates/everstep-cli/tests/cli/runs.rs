//! Runs of runs, and what runs say about themselves, from the command line: children, chains, attempts, attributes, memo,
//! and the defaults of a namespace.

use everstep::{Ctx, Notes, StepError, Worker, WorkflowError};
use everstep_tests::cluster::RunningWorker;

use crate::support::{Cli, Running, everstep, folder};

async fn parent(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    Ok(ctx.child::<u32>("count", 1).workflow_id("p/1").await?)
}

/// Counts signals, two in each run, until there are four or more.
async fn count(ctx: Ctx, mut n: u32) -> Result<u32, WorkflowError> {
    for _tick in 0..2 {
        ctx.signal::<()>("tick").await?;
        n += 1;
    }
    if n >= 4 { Ok(n) } else { Err(ctx.continue_as_new(&n)) }
}

/// Fails until it is the attempt that it was told.
async fn stubborn(ctx: Ctx, wanted: u32) -> Result<u32, WorkflowError> {
    match ctx.run_info().attempt {
        attempt if attempt == wanted => Ok(attempt),
        _ => Err(WorkflowError::new("NotYet", "m")),
    }
}

async fn packed(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
    ctx.upsert(Notes::new().attribute("amount", 12_i64).memo("stage", "packed"));
    Ok(ctx.signal::<()>("done").await?)
}

async fn down(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
    Ok(ctx.step("call", || async { Err::<(), _>(StepError::new("Down", "503")) }).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_shown_with_those_that_they_belong_to() -> anyhow::Result<()> {
    let folder = folder()?;
    let server = Running::server(everstep(folder.path(), &["dev", "--port", "0"])).await?;
    let cli = Cli { folder: folder.path(), address: &server.address };
    let flows = Worker::builder(&server.address).register("parent", parent).register("count", count);
    let _flows = RunningWorker::start(flows.register("stubborn", stubborn))?;

    let parent = cli.does(&["run", "start", "parent", "--workflow-id", "p"], &[]).await?.stdout;
    cli.until(&["run", "list", "--parent", "p"], "p/1").await?;
    let first =
        cli.does(&["run", "list", "--parent", parent.trim(), "-o", "jsonl"], &["\"p/1\""]).await?.stdout;
    let first =
        serde_json::from_str::<serde_json::Value>(&first)?["run_id"].as_str().unwrap_or_default().to_owned();
    cli.refuses(1, &["run", "list", "--parent", "none"], &["RUN_NOT_FOUND"]).await?;
    cli.does(&["run", "show", "p"], &["children          1 running\n"]).await?;
    let shown = cli.does(&["run", "show", &first, "-o", "json"], &["\"more_children\": false"]).await?;
    assert!(shown.stdout.contains("\"children\": {}"), "{shown:?}");
    for _tick in 0..4 {
        cli.does(&["run", "signal", "p/1", "tick"], &[]).await?;
    }
    cli.does(&["run", "result", "p"], &["5\n"]).await?;
    cli.does(&["run", "show", "p"], &["children          1 completed, 1 continued\n"]).await?;
    // Who names the first run of a chain means that one when he looks, and the last one when he waits.
    cli.does(&["run", "result", &first], &["5\n"]).await?;
    let origin = format!("parent={}", parent.trim());
    cli.does(&["run", "history", &first, "--chain"], &[&origin, "RunContinued", "previous=", "RunCompleted"])
        .await?;
    let watched = cli.does(&["run", "watch", &first], &["RunContinued"]).await?;
    assert!(watched.stderr.contains("the run is continued; it goes on as run "), "{watched:?}");
    cli.does(&["run", "list", "--status", "continued"], &["p/1"]).await?;

    let tries =
        ["run", "start", "stubborn", "--workflow-id", "s", "--retry", "attempts=3,initial=1ms", "--wait"];
    cli.does(&[&tries[..], &["--input", "3"]].concat(), &["3\n"]).await?;
    cli.does(&["run", "show", "s"], &["attempt           3", "previous_run_id"]).await?;
    cli.refuses(1, &[&tries[..], &["--input", "9"]].concat(), &["failed: NotYet"]).await?;
    cli.refuses(2, &["run", "start", "stubborn", "--retry", "often=3"], &["'often'", "attempts"]).await?;
    // Nobody had a reason.
    let waits = ["run", "start", "stubborn", "--workflow-id", "late", "--start-delay", "1h"];
    cli.does(&waits, &[]).await?;
    cli.does(&["run", "cancel", "late"], &[]).await?;
    let ended = cli.says(1, &["run", "result", "late"], (&[], &["the run is canceled: Canceled"])).await?;
    assert!(ended.stderr.trim_end().ends_with("Canceled"), "{ended:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_found_by_what_they_say() -> anyhow::Result<()> {
    let folder = folder()?;
    let server = Running::server(everstep(folder.path(), &["dev", "--port", "0"])).await?;
    let cli = Cli { folder: folder.path(), address: &server.address };
    let _flows = RunningWorker::start(
        Worker::builder(&server.address).register("packed", packed).register("down", down),
    )?;
    cli.does(&["attribute", "add", "customer", "keyword"], &[]).await?;
    cli.does(&["attribute", "add", "amount", "int"], &[]).await?;
    cli.refuses(1, &["attribute", "add", "amount", "float"], &["as int already", "ATTRIBUTE_TYPE_MISMATCH"])
        .await?;
    cli.refuses(2, &["attribute", "add", "x", "text"], &["keyword, keywords"]).await?;
    cli.does(&["attribute", "list"], &["customer", "amount"]).await?;
    let start = ["run", "start", "packed", "--workflow-id", "n", "--attribute", "customer=acme"];
    cli.does(&[&start[..], &["--attribute", "amount=3", "--memo", "who=\"ada\""]].concat(), &[]).await?;
    cli.until(&["run", "list", "--where", "customer=acme", "--where", "amount>=10"], " n ").await?;
    cli.does(&["run", "show", "n"], &["\"amount\":12", "\"stage\":\"packed\"", "\"who\":\"ada\""]).await?;
    let none = cli.does(&["run", "list", "--where", "amount<10", "-o", "jsonl"], &[]).await?;
    assert_eq!(none.stdout, "");
    // Each is said once, with the command that helps.
    let undeclared = cli
        .says(1, &["run", "start", "packed", "--attribute", "colour=red"], (&[], &["ATTRIBUTE_NOT_DECLARED"]))
        .await?;
    assert_eq!(undeclared.stderr.matches("not declared").count(), 1, "{undeclared:?}");
    assert!(undeclared.stderr.contains("everstep attribute add"), "{undeclared:?}");
    cli.refuses(2, &["run", "start", "packed", "--attribute", "amount=many"], &["'many'", "int"]).await?;
    cli.refuses(2, &["run", "list", "--where", "amount~1"], &["amount~1", "NAME OP VALUE"]).await?;
    cli.refuses(1, &["run", "list", "--namespace", "none"], &["NAMESPACE_NOT_FOUND", "namespace create"])
        .await?;

    // What the namespace says holds where code is silent: a node goes by it within 5 s.
    let policy = ["namespace", "set", "default", "--step-retry", "attempts=1", "-o", "jsonl"];
    cli.does(&policy, &["\"maximum_attempts\":1"]).await?;
    loop {
        cli.does(&["run", "start", "down", "--workflow-id", "d"], &[]).await?;
        let begun = cli.does(&["run", "history", "d", "-o", "jsonl"], &[]).await?;
        if begun.stdout.contains("step_retry") {
            break;
        }
        cli.does(&["run", "terminate", "d"], &[]).await?;
    }
    cli.refuses(1, &["run", "result", "d"], &["failed: Down"]).await?;
    Ok(())
}
