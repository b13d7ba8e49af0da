//! Steps in doubt from the command line: the server and the person are processes, the workers are the test's own, and the
//! first of them dies in the middle of its steps.

use std::time::Duration;

use everstep::{
    Ctx, InDoubt, QueuedDoubt, StepCtx, StepError, StepType, Worker, WorkerBuilder, WorkflowError,
};
use everstep::{RetryPolicy, step_info};
use everstep_tests::cluster::RunningWorker;
use tokio::sync::mpsc;

use crate::support::{Cli, Running, everstep, folder};

struct Print;

impl StepType for Print {
    const NAME: &'static str = "print";
    type Input = ();
    type Output = String;
}

/// The first attempt begins and never ends.
async fn first_hangs(attempt: u32, begun: mpsc::UnboundedSender<()>) -> Result<String, StepError> {
    if attempt == 1 {
        let _ = begun.send(());
        std::future::pending::<()>().await;
    }
    Ok(format!("attempt {attempt}"))
}

/// Ships, and asks a person if it is not known whether it did; or asks somebody who does not know either.
async fn ship(ctx: Ctx, knows: String, begun: mpsc::UnboundedSender<()>) -> Result<String, WorkflowError> {
    if knows == "queued" {
        return Ok(ctx.run::<Print>(()).in_doubt(QueuedDoubt::AskHuman).await?);
    }
    let offline =
        || async { Err::<Option<String>, _>(StepError::new("Offline", "the carrier does not know")) };
    let policy = if knows == "nobody" { InDoubt::verify(offline) } else { InDoubt::AskHuman };
    let ship = move || first_hangs(step_info().map_or(0, |info| info.attempt), begun.clone());
    Ok(ctx.step("ship", ship).retry(RetryPolicy::none()).in_doubt(policy).await?)
}

fn worker(address: &str, begun: &mpsc::UnboundedSender<()>) -> WorkerBuilder {
    let (of_ship, of_print) = (begun.clone(), begun.clone());
    Worker::builder(address)
        .park_after(Duration::from_millis(50))
        .register("ship", move |ctx, knows: String| ship(ctx, knows, of_ship.clone()))
        .register_step::<Print, _, _>(move |step: StepCtx, ()| {
            first_hangs(step.info().attempt, of_print.clone())
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_says_what_became_of_steps() -> anyhow::Result<()> {
    let folder = folder()?;
    let server = Running::server(everstep(folder.path(), &["dev", "--port", "0", "--lease", "1s"])).await?;
    let cli = Cli { folder: folder.path(), address: &server.address };
    let (begun, mut heard) = mpsc::unbounded_channel();
    let first = RunningWorker::start(worker(&server.address, &begun))?;
    let runs = [("a", "person"), ("b", "person"), ("c", "person"), ("d", "nobody"), ("e", "queued")];
    for (id, knows) in runs {
        let input = format!("\"{knows}\"");
        cli.does(&["run", "start", "ship", "--workflow-id", id, "--input", &input], &[]).await?;
    }
    for _run in runs {
        heard.recv().await;
    }
    drop(first);
    for (id, _) in runs {
        cli.until(&["step", "list", "--run", id, "-o", "jsonl"], "\"attempt\":1").await?;
    }
    let listed =
        cli.does(&["step", "list", "-o", "jsonl"], &["\"ask_human\"", "\"verify\"", "\"print\""]).await?;
    assert_eq!(listed.stdout.lines().count(), runs.len(), "{listed:?}");
    cli.does(&["run", "show", "a"], &["in_doubt_steps    step 1 (ship), attempt 1: ask_human"]).await?;

    // Said while nobody has the runs: the worker that comes goes by it.
    let done = ["step", "resolve", "a", "1", "--completed", "\"by hand\"", "--note", "the carrier has it"];
    cli.does(&done, &[]).await?;
    cli.refuses(1, &done, &["STEP_NOT_IN_DOUBT", "everstep step list"]).await?;
    cli.does(&["step", "resolve", "b", "1", "--failed", "Lost: no parcel"], &[]).await?;
    let again = ["step", "resolve", "c", "1", "--retry", "--attempt", "1", "--request-id", "r"];
    let stale = ["step", "resolve", "c", "1", "--retry", "--attempt", "7"];
    cli.refuses(1, &stale, &["attempt 7", "STEP_NOT_IN_DOUBT"]).await?;
    cli.does(&again, &[]).await?;
    cli.does(&again, &[]).await?;
    let other = ["step", "resolve", "c", "1", "--failed", "X:y", "--request-id", "r"];
    cli.refuses(1, &other, &["IDEMPOTENCY_MISMATCH"]).await?;
    cli.does(&["step", "resolve", "e", "1", "--completed", "\"printed\""], &[]).await?;

    let _second = RunningWorker::start(worker(&server.address, &begun))?;
    cli.does(&["run", "result", "a"], &["by hand\n"]).await?;
    cli.refuses(1, &["run", "result", "b"], &["failed: Lost", "no parcel"]).await?;
    cli.does(&["run", "result", "c"], &["attempt 2\n"]).await?;
    cli.does(&["run", "result", "e"], &["printed\n"]).await?;
    cli.does(&["run", "history", "a"], &["StepInDoubt", "StepResolved", "the carrier has it"]).await?;

    // The probe of a worker that is there finds nothing out: a person is faster.
    cli.until(&["run", "show", "d"], "attached          true").await?;
    cli.refuses(2, &["step", "resolve", "d", "1", "--completed", "done"], &["'done' is not JSON"]).await?;
    cli.refuses(2, &["step", "resolve", "d", "1"], &["--completed", "--failed", "--retry"]).await?;
    cli.refuses(2, &["step", "resolve", "d", "1", "--failed", "why"], &["KIND:MESSAGE"]).await?;
    cli.refuses(2, &["step", "resolve", "d", "one", "--retry"], &["one"]).await?;
    cli.refuses(1, &["step", "resolve", "d", "2", "--retry"], &["STEP_NOT_IN_DOUBT"]).await?;
    cli.does(&["step", "resolve", "d", "1", "--completed", "\"yes\""], &[]).await?;
    cli.does(&["run", "result", "d"], &["yes\n"]).await?;
    assert_eq!(cli.does(&["step", "list", "-o", "jsonl"], &[]).await?.stdout, "");
    Ok(())
}
