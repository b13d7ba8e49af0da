//! Children and requests between runs, on every store.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use everstep::client::RunListFilter;
use everstep::{
    ChildError, Client, Ctx, ParentClose, RunHandle, RunStatus, StepError, WorkerBuilder, WorkflowError,
};
use everstep_core::{EventBody, RunId};
use everstep_dispatch::InProcess;
use everstep_store::Store;
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};

use crate::stores;

mod crash;
mod descent;
mod telling;

async fn double(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.step("double", move || async move { Ok::<_, StepError>(n * 2) }).await?)
}

async fn fails(_: Ctx, (): ()) -> Result<u32, WorkflowError> {
    Err(WorkflowError::new("Oops", "no luck"))
}

/// Gives what it is sent, or stops when it is asked to.
async fn waits(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    match everstep::select2(ctx.signal::<u32>("go"), ctx.canceled()).await {
        everstep::Either::Left(sent) => Ok(sent?),
        everstep::Either::Right(()) => Err(WorkflowError::Canceled("asked to".to_owned())),
    }
}

/// Counts down in a run for each number.
async fn chain(ctx: Ctx, left: u32) -> Result<u32, WorkflowError> {
    if left == 0 { Ok(7) } else { Err(ctx.continue_as_new(&(left - 1))) }
}

/// Lives on in a run for each number, and then waits to be stopped.
async fn endures(ctx: Ctx, left: u32) -> Result<(), WorkflowError> {
    if left > 0 {
        return Err(ctx.continue_as_new(&(left - 1)));
    }
    ctx.signal::<()>("never").await?;
    Ok(())
}

/// The parent of such a one.
async fn raises(ctx: Ctx, runs: u32) -> Result<(), WorkflowError> {
    ctx.child::<()>("endures", runs).start().await?.result().await?;
    Ok(())
}

/// A tree of runs; gives how many there are.
async fn tree(ctx: Ctx, depth: u32) -> Result<u32, WorkflowError> {
    if depth == 0 {
        return Ok(1);
    }
    let (left, right) =
        everstep::join!(ctx.child::<u32>("tree", depth - 1), ctx.child::<u32>("tree", depth - 1));
    Ok(1 + left? + right?)
}

async fn fan(ctx: Ctx, count: u32) -> Result<u32, WorkflowError> {
    use std::future::IntoFuture;
    let children = (0..count).map(|n| ctx.child::<u32>("double", n).into_future());
    let mut done = everstep::buffered(children, 20);
    let mut sum = 0;
    while let Some(doubled) = done.next().await {
        sum += doubled?;
    }
    Ok(sum)
}

/// What a child or a request came to, in words.
async fn tells(ctx: Ctx, what: String) -> Result<String, WorkflowError> {
    let ended = |result: Result<u32, ChildError>| match result {
        Ok(n) => n.to_string(),
        Err(ChildError::Ended { status, failure, .. }) => format!("{status} {}", failure.kind),
        Err(ChildError::NotStarted(failure)) => format!("not started: {}", failure.kind),
        Err(ChildError::Payload(_)) => "payload".to_owned(),
    };
    let sent = |result: Result<(), everstep::ExternalFailed>| match result {
        Ok(()) => "sent".to_owned(),
        Err(failed) => failed.failure.kind,
    };
    Ok(match what.as_str() {
        "result" => ended(ctx.child("double", 21).await),
        "failure" => ended(ctx.child("fails", ()).await),
        "type" => ended(ctx.child::<u32>("words", ()).await),
        "name" => ended(ctx.child("double", 1).workflow_id("no\0name").await),
        "taken" => ended(ctx.child("double", 1).workflow_id("taken").await),
        "taken, start" => match ctx.child::<u32>("double", 1).workflow_id("taken").start().await {
            Ok(child) => child.run_id().to_string(),
            Err(error) => ended(Err(error)),
        },
        "chain" => ended(ctx.child("chain", 3).await),
        "timeout" => ended(ctx.child("waits", ()).run_timeout(Duration::from_millis(50)).await),
        "signal" => {
            let child = ctx.child::<u32>("waits", ()).start().await?;
            let word = sent(child.signal("go", &5).await);
            format!("{word} {}", ended(child.result().await))
        }
        "cancel" => {
            let child = ctx.child::<u32>("waits", ()).start().await?;
            let word = sent(child.cancel("enough").await);
            format!("{word} {}", ended(child.result().await))
        }
        "external" => sent(ctx.external("other").signal("go", &9).await),
        "external, cancel" => sent(ctx.external("other").cancel("enough").await),
        "external, nobody" => sent(ctx.external("nobody").signal("go", &9).await),
        "external, closed" => sent(ctx.external("closed").signal("go", &9).await),
        "external, name" => sent(ctx.external("no\0body").signal("go", &9).await),
        other => return Err(WorkflowError::new("Test", other)),
    })
}

/// Starts a child of each policy, waits to be told to, and ends.
async fn leaves(ctx: Ctx, (): ()) -> Result<Vec<RunId>, WorkflowError> {
    let mut runs = Vec::new();
    for policy in ParentClose::ALL {
        let child = ctx.child::<u32>("waits", ()).on_parent_close(policy).start().await?;
        runs.push(child.run_id());
    }
    ctx.signal::<()>("end").await?;
    Ok(runs)
}

async fn words(_: Ctx, (): ()) -> Result<String, WorkflowError> {
    Ok("words".to_owned())
}

fn all_types(worker: WorkerBuilder) -> WorkerBuilder {
    worker
        .register("double", double)
        .register("fails", fails)
        .register("waits", waits)
        .register("chain", chain)
        .register("endures", endures)
        .register("raises", raises)
        .register("tree", tree)
        .register("fan", fan)
        .register("tells", tells)
        .register("leaves", leaves)
        .register("words", words)
}

async fn node_on(store: &Arc<dyn Store>) -> anyhow::Result<(RunningNode, RunningWorker)> {
    let store = Arc::clone(store);
    let node = RunningNode::start(store, Arc::new(InProcess::new()), NodeSettings::default()).await?;
    let worker = RunningWorker::start(all_types(node.worker()))?;
    Ok((node, worker))
}

/// Nobody has anything left to tell anybody.
async fn quiet(store: &Arc<dyn Store>) -> anyhow::Result<()> {
    let late = tokio::time::Instant::now() + Duration::from_secs(20);
    while store.backlog(1).await?.untold > 0 {
        anyhow::ensure!(tokio::time::Instant::now() < late, "the outbox is not empty");
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn kinds<R: serde::de::DeserializeOwned>(run: &RunHandle<R>) -> anyhow::Result<Vec<String>> {
    let mut history = run.history(0, false).await?;
    let mut kinds = Vec::new();
    while let Some(event) = history.next().await? {
        kinds.push(event.body.kind().to_owned());
    }
    Ok(kinds)
}

async fn until<R: serde::de::DeserializeOwned>(run: &RunHandle<R>, kind: &str) -> anyhow::Result<()> {
    let mut history = run.history(0, true).await?;
    while let Some(event) = history.next().await? {
        if event.body.kind() == kind {
            return Ok(());
        }
    }
    anyhow::bail!("no {kind}")
}

async fn status(client: &Client, run: RunId) -> anyhow::Result<RunStatus> {
    Ok(client.handle::<u32>(run).describe().await?.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_hears_what_becomes_of_what_it_asks_of_others() -> anyhow::Result<()> {
    for stores::TestStore { name, store, .. } in &stores::all().await? {
        let (node, _worker) = node_on(store).await?;
        let client = node.client()?;
        let taken = client.workflow::<u32>("waits").workflow_id("taken").start(&()).await?;
        let closed = client.workflow::<u32>("double").workflow_id("closed").start(&1).await?;
        closed.result().await?;
        let tell = async |what: &str| -> anyhow::Result<(String, Vec<String>)> {
            let run = client.workflow::<String>("tells").start(&what).await?;
            Ok((run.result().await?, kinds(&run).await?))
        };
        for (what, expected, scheduled) in [
            ("result", "42", true),
            ("failure", "failed Oops", true),
            ("type", "payload", true),
            ("name", "not started: InvalidArgument", false),
            ("taken", "not started: AlreadyStarted", true),
            ("taken, start", "not started: AlreadyStarted", true),
            ("chain", "7", true),
            ("timeout", "timed_out RunTimeout", true),
            ("signal", "sent 5", true),
            ("cancel", "sent canceled Canceled", true),
            ("external, nobody", "RunNotFound", false),
            ("external, closed", "RunClosed", false),
            ("external, name", "InvalidArgument", false),
        ] {
            let (said, kinds) = tell(what).await?;
            assert_eq!(said, expected, "{name}: {what}: {kinds:?}");
            let children = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
            assert_eq!(children("ChildScheduled"), usize::from(scheduled), "{name}: {what}: {kinds:?}");
            assert_eq!(children("ChildClosed"), usize::from(scheduled), "{name}: {what}: {kinds:?}");
        }
        for what in ["external", "external, cancel"] {
            let other = client.workflow::<u32>("waits").workflow_id("other").start(&()).await?;
            assert_eq!(tell(what).await?.0, "sent", "{name}: {what}");
            let ended = other.result().await;
            assert_eq!(ended.is_ok(), what == "external", "{name}: {ended:?}");
        }
        taken.signal("go", &1).await?;
        taken.result().await?;
        quiet(store).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_children_whose_parent_ends_is_their_policy() -> anyhow::Result<()> {
    for stores::TestStore { name, store, .. } in &stores::all().await? {
        let (node, _worker) = node_on(store).await?;
        let client = node.client()?;
        let run = client.workflow::<Vec<RunId>>("leaves").start(&()).await?;
        run.signal("end", &()).await?;
        let children = run.result().await?;
        let parent = run.run_id().ok_or_else(|| anyhow::anyhow!("no run id"))?;
        let page =
            client.list(&RunListFilter { parent: Some(parent), ..RunListFilter::default() }, "").await?;
        let mut listed: Vec<RunId> =
            page.runs.iter().map(|r| r.run.run_id.parse()).collect::<Result<_, _>>()?;
        listed.sort_unstable();
        let mut expected = children.clone();
        expected.sort_unstable();
        assert_eq!(listed, expected, "{name}");
        let of = &page.runs[0].run.parent_run_id;
        assert_eq!(*of, parent.to_string(), "{name}");
        let [terminated, canceled, abandoned] = children[..] else { anyhow::bail!("{children:?}") };
        for (child, kind) in [(terminated, "RunTerminated"), (canceled, "RunCanceled")] {
            until(&client.handle::<u32>(child), kind).await?;
        }
        quiet(store).await?;
        assert_eq!(status(&client, abandoned).await?, RunStatus::Running, "{name}");
        let abandoned = client.handle::<u32>(abandoned);
        abandoned.signal("go", &3).await?;
        assert_eq!(abandoned.result().await?, 3, "{name}");

        // By force, too.
        let run = client.workflow::<Vec<RunId>>("leaves").start(&()).await?;
        let mut history = run.history(0, true).await?;
        let mut started = Vec::new();
        while let (Some(event), true) = (history.next().await?, started.len() < 3) {
            if let EventBody::ChildScheduled(scheduled) = &event.body {
                started.push(scheduled.run_id);
            }
            if started.len() == 3 {
                break;
            }
        }
        run.terminate("enough").await?;
        until(&client.handle::<u32>(started[0]), "RunTerminated").await?;
        quiet(store).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parents_end_reaches_a_child_that_has_gone_through_many_runs() -> anyhow::Result<()> {
    for stores::TestStore { name, store, .. } in &stores::all().await? {
        let (node, _worker) = node_on(store).await?;
        let client = node.client()?;
        let parent = client.workflow::<()>("raises").start(&80).await?;
        until(&parent, "ChildStarted").await?;
        let mut history = parent.history(0, true).await?;
        let mut last = loop {
            let event = history.next().await?.context("the parent has ended")?;
            if let EventBody::ChildScheduled(scheduled) = &event.body {
                break scheduled.run_id;
            }
        };
        for _ in 0..80 {
            let mut history = client.handle::<()>(last).history(0, true).await?;
            last = loop {
                let event = history.next().await?.with_context(|| format!("{name}: the child has ended"))?;
                if let Some(next) = event.body.successor() {
                    break next;
                }
            };
        }
        parent.terminate("enough").await?;
        let last = client.handle::<()>(last);
        let ended = tokio::time::timeout(Duration::from_secs(20), until(&last, "RunTerminated")).await;
        ended.with_context(|| format!("{name}: the last run is not told"))??;
        quiet(store).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn children_have_children_and_there_may_be_many() -> anyhow::Result<()> {
    for stores::TestStore { name, store, .. } in &stores::all().await? {
        let (node, _worker) = node_on(store).await?;
        let client = node.client()?;
        let count: u32 = if *name == "memory" { 1_000 } else { 200 };
        let fan = client.workflow::<u32>("fan").start(&count).await?;
        let tree = client.workflow::<u32>("tree").start(&4).await?;
        assert_eq!(tree.result().await?, 31, "{name}");
        assert_eq!(fan.result().await?, count * (count - 1), "{name}");
        let kinds = kinds(&fan).await?;
        let of = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
        assert_eq!((of("ChildScheduled"), of("ChildClosed")), (count as usize, count as usize), "{name}");
        quiet(store).await?;
    }
    Ok(())
}
