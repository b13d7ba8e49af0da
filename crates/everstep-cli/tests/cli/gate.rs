//! The replay gate and the builds, from the command line: a server and clients are processes, the workers are the
//! test's own.

use everstep::{Ctx, StepError, Worker, WorkflowError};
use everstep_tests::cluster::RunningWorker;

use crate::support::{Ended, Running, everstep, folder, run};

async fn number(ctx: &Ctx, name: &str, value: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.step(name.to_owned(), move || async move { Ok::<_, StepError>(value) }).await?)
}

async fn order(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let sum = number(&ctx, "charge", 10).await?;
    ctx.signal::<()>("close").await?;
    Ok(sum)
}

async fn changed(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let sum = number(&ctx, "fee", 1).await? + number(&ctx, "charge", 10).await?;
    ctx.signal::<()>("close").await?;
    Ok(sum)
}

#[track_caller]
fn ended(ended: &Ended, code: i32, stdout: &[&str], stderr: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    for part in stdout {
        assert!(ended.stdout.contains(part), "'{part}' is not on stdout: {ended:?}");
    }
    for part in stderr {
        assert!(ended.stderr.contains(part), "'{part}' is not on stderr: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_does_not_fit_is_stopped_at_the_gate() -> anyhow::Result<()> {
    let folder = folder()?;
    let dev = everstep(folder.path(), &["dev", "--port", "0"]);
    let server = Running::server(dev).await?;
    let address = server.address.as_str();
    let cli =
        async |arguments: &[&str]| run(folder.path(), &[arguments, &["--address", address]].concat()).await;
    let worker = |build: &str| Worker::builder(address).build_id(build.to_owned());
    let old = RunningWorker::start(worker("v1").register_pinned("order", order))?;
    for id in ["open", "closed"] {
        ended(&cli(&["run", "start", "order", "--workflow-id", id]).await?, 0, &[], &[]);
    }
    ended(&cli(&["run", "signal", "closed", "close"]).await?, 0, &[], &[]);
    ended(&cli(&["run", "result", "closed"]).await?, 0, &["10"], &[]);
    ended(&cli(&["run", "export", "closed", "--out", "closed.history"]).await?, 0, &[], &[]);
    ended(&cli(&["run", "export", "--open", "--dir", "all"]).await?, 0, &[], &["1 files"]);
    ended(&cli(&["run", "export", "open"]).await?, 2, &[], &["--out"]);
    old.stop().await?;

    let _fits = RunningWorker::start(worker("v2").check_only(true).register("order", order))?;
    let _differs = RunningWorker::start(worker("v3").check_only(true).register("order", changed))?;
    ended(&cli(&["replay", "closed.history", "--build", "v2"]).await?, 0, &["fits"], &["1 checked"]);
    let line = [
        "differs at event",
        "(StepCompleted)",
        "step 'charge' #1",
        "step 'fee' #1",
        "gate.rs:",
        "recorded by v1, checked with v3",
    ];
    ended(&cli(&["replay", "closed.history", "--build", "v3"]).await?, 1, &line, &["1 of 1"]);
    ended(&cli(&["worker", "check", "--build", "v2"]).await?, 0, &["fits"], &["2 checked"]);
    ended(&cli(&["worker", "check", "--build", "v3", "--open"]).await?, 1, &line, &["1 of 1"]);
    ended(
        &cli(&["worker", "check", "--build", "v2", "--workflow-type", "other"]).await?,
        1,
        &[],
        &["nothing was checked"],
    );
    let nobody = cli(&["worker", "check", "--build", "v9", "--wait", "1ms"]).await?;
    ended(&nobody, 1, &[], &["v9", "EVERSTEP_CHECK_ONLY=1", "NO_WORKER"]);
    std::fs::write(folder.path().join("bad.history"), "no history")?;
    ended(
        &cli(&["replay", "bad.history", "--build", "v2"]).await?,
        1,
        &[],
        &["bad.history", "INVALID_HISTORY"],
    );
    ended(&cli(&["replay", "missing.history", "--build", "v2"]).await?, 1, &[], &["missing.history"]);

    // Nothing of this was recorded: the run still waits for the build that it belongs to.
    ended(&cli(&["run", "signal", "open", "close"]).await?, 0, &[], &[]);
    loop {
        let listed = cli(&["build", "list"]).await?;
        if listed.stdout.contains("wait") {
            ended(&cli(&["run", "show", "open"]).await?, 0, &["waits_for_build   v1"], &[]);
            ended(&cli(&["run", "list", "--waits-for-build"]).await?, 0, &["open"], &[]);
            let none = cli(&["run", "list", "--waits-for-build", "v0"]).await?;
            assert!(!none.stdout.contains("open"), "{none:?}");
            ended(
                &listed,
                0,
                &["v2", "(only checks)", "1 run of 'order' waits for build v1 (queue default"],
                &[],
            );
            break;
        }
    }
    ended(&cli(&["build", "allow", "v2", "--continues", "v1"]).await?, 0, &[], &[]);
    let _takes_over = RunningWorker::start(worker("v2").register_pinned("order", order))?;
    ended(&cli(&["run", "result", "open"]).await?, 0, &["10"], &[]);
    Ok(())
}
