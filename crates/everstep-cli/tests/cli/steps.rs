//! Queued steps from the command line: queues, limits, and attempts that are ended by their token.

use everstep::{Ctx, RetryPolicy, StepCtx, StepError, StepType, Worker, WorkflowError, join_all};
use everstep_tests::cluster::RunningWorker;
use tokio::sync::mpsc;

use crate::support::{Cli, Running, everstep, folder};

struct Approve;

impl StepType for Approve {
    const NAME: &'static str = "approve";
    type Input = u32;
    type Output = u32;
}

async fn ask(ctx: Ctx, many: u32) -> Result<u32, WorkflowError> {
    let soon = RetryPolicy {
        initial_interval: std::time::Duration::from_millis(1).into(),
        ..RetryPolicy::default()
    };
    let step = |n| ctx.run::<Approve>(n).task_queue("people").retry(soon.clone());
    let answers = join_all((0..many).map(step)).await;
    answers.into_iter().try_fold(0, |sum, answer| Ok(sum + answer?))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_is_ended_by_its_token() -> anyhow::Result<()> {
    let folder = folder()?;
    let server = Running::server(everstep(folder.path(), &["dev", "--port", "0"])).await?;
    let cli = Cli { folder: folder.path(), address: &server.address };
    let (tell, mut tokens) = mpsc::unbounded_channel();
    let later = move |step: StepCtx, _: u32| {
        let _ = tell.send(step.task_token());
        async move { Err::<u32, StepError>(step.complete_later()) }
    };
    let people = Worker::builder(&server.address).task_queue("people").register_step::<Approve, _, _>(later);
    let _people = RunningWorker::start(people)?;
    let _flows = RunningWorker::start(Worker::builder(&server.address).register("ask", ask))?;
    let mut token = async || tokens.recv().await.unwrap_or_default();

    cli.does(&["queue", "limit", "people", "--running", "1"], &[]).await?;
    cli.does(&["run", "start", "ask", "--workflow-id", "a", "--input", "2"], &[]).await?;
    let first = token().await;
    // The attempt holds no slot of its worker's, but one of its queue's.
    let show = ["queue", "show", "people", "-o", "jsonl"];
    cli.until(&show, "\"steps_running\":1").await?;
    cli.does(&show, &["\"steps_waiting\":1", "\"max_running\":1"]).await?;
    cli.does(&["queue", "list"], &["people"]).await?;
    cli.does(&["run", "start", "nobody", "--task-queue", "people"], &[]).await?;
    cli.until(&show, "\"types_without_worker\":[{").await?;
    cli.does(&show, &["\"workflow_type\":\"nobody\"", "\"identity\":", "\"step_slots\":"]).await?;
    let shown =
        ["WORKER", "STEP SLOTS", "WITHOUT WORKER", "nobody                            workflow        1"];
    cli.does(&["queue", "show", "people"], &shown).await?;
    cli.does(&["queue", "show", "elsewhere"], &["No worker serves it."]).await?;
    cli.does(&["step", "list", "--state", "running", "--run", "a"], &["approve"]).await?;
    cli.does(&["step", "list", "--state", "queued"], &["approve", "people"]).await?;

    cli.does(&["step", "heartbeat", &first, "--details", "\"half\""], &["go on\n"]).await?;
    cli.does(&["step", "heartbeat", &first, "-o", "jsonl"], &["{\"cancel_requested\":false}\n"]).await?;
    cli.does(&["step", "fail", &first, "Away: at lunch"], &[]).await?;
    cli.does(&["queue", "limit", "people", "--none"], &[]).await?;
    let second = token().await;
    cli.refuses(1, &["step", "complete", &first, "--result", "4"], &["STALE_ATTEMPT"]).await?;
    cli.refuses(1, &["step", "heartbeat", &first], &["STALE_ATTEMPT"]).await?;
    for token in [second, token().await] {
        // To say it twice is to say it once.
        cli.does(&["step", "complete", &token, "--result", "4"], &[]).await?;
        cli.does(&["step", "complete", &token, "--result", "4"], &[]).await?;
    }
    cli.does(&["run", "result", "a"], &["8\n"]).await?;
    cli.does(&["run", "history", "a"], &["StepScheduled", "queue=people", "Away"]).await?;
    cli.refuses(1, &["step", "complete", &first, "--result", "4"], &["RUN_CLOSED"]).await?;
    cli.refuses(1, &["step", "complete", "t1.nonsense"], &["TASK_TOKEN_INVALID"]).await?;
    cli.refuses(2, &["step", "fail", &first, "why"], &["KIND:MESSAGE"]).await?;

    // Somebody says that no attempt is worth it.
    cli.does(&["run", "start", "ask", "--workflow-id", "b", "--input", "1"], &[]).await?;
    let last = token().await;
    cli.does(&["step", "fail", &last, "No: never", "--final"], &[]).await?;
    cli.refuses(1, &["run", "result", "b"], &["failed: No", "never"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_none_is_refused() -> anyhow::Result<()> {
    let folder = folder()?;
    let server = Running::server(everstep(folder.path(), &["dev", "--port", "0"])).await?;
    let cli = Cli { folder: folder.path(), address: &server.address };
    for (arguments, part) in [
        (&["--running", "0"][..], "--running"),
        (&["--per-second", "0"], "--none lifts all limits"),
        (&["--per-second", "-1"], "--per-second"),
        (&["--per-second", "nan"], "--per-second"),
        (&["--per-second", "inf"], "--per-second"),
        (&["--burst", "3"], "--per-second"),
        (&["--none", "--running", "1"], "--none"),
        (&[], "--running"),
    ] {
        cli.refuses(2, &[&["queue", "limit", "q"], arguments].concat(), &[part]).await?;
    }
    cli.does(&["queue", "limit", "q", "--per-second", "0.5", "--burst", "2"], &[]).await?;
    cli.does(&["queue", "show", "q", "-o", "jsonl"], &["\"max_per_second\":0.5", "\"burst\":2"]).await?;
    Ok(())
}
