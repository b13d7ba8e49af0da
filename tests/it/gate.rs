//! The replay gate: histories are exported as they are, and held against the code of a build that runs nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use everstep::client::{CheckVerdict, CheckedHistory, HistoryCheck};
use everstep::testing::{History, Replayer};
use everstep::{Client, ClientError, Ctx, RunHandle, StepError, WorkerBuilder, WorkflowError};
use everstep_core::{DetachReason, Event, EventBody};
use everstep_tests::cluster::{RunningNode, RunningWorker};

use crate::nodes::node_on;
use crate::stores;

async fn number(ctx: &Ctx, name: &str, value: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.step(name.to_owned(), move || async move { Ok::<_, StepError>(value) }).await?)
}

/// Charges when it is told to, and then waits to be closed.
async fn order(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let drawn = ctx.random() % 2;
    let open = number(&ctx, "open", u32::try_from(drawn).unwrap_or_default()).await?;
    ctx.signal::<()>("charge").await?;
    let sum = open + number(&ctx, "charge", 10).await?;
    ctx.signal::<()>("close").await?;
    Ok(sum)
}

/// The same with a fee before the charge, and no marker for it.
async fn order_with_fee(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let drawn = ctx.random() % 2;
    let open = number(&ctx, "open", u32::try_from(drawn).unwrap_or_default()).await?;
    ctx.signal::<()>("charge").await?;
    let fee = number(&ctx, "fee", 1).await?;
    let sum = open + fee + number(&ctx, "charge", 10).await?;
    ctx.signal::<()>("close").await?;
    Ok(sum)
}

async fn ping(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    number(&ctx, "ping", 1).await
}

async fn in_memory() -> anyhow::Result<(RunningNode, Client)> {
    let node = RunningNode::in_memory().await?;
    let client = node.client()?;
    Ok((node, client))
}

async fn until(run: &RunHandle<u32>, wanted: impl Fn(&EventBody) -> bool) -> anyhow::Result<()> {
    let mut history = run.history(0, true).await?;
    while let Some(event) = history.next().await? {
        if wanted(&event.body) {
            return Ok(());
        }
    }
    anyhow::bail!("the run ended before")
}

fn is_parked(body: &EventBody) -> bool {
    matches!(body, EventBody::WorkerDetached { reason: DetachReason::Parked })
}

async fn events(run: &RunHandle<u32>) -> anyhow::Result<Vec<Event>> {
    let mut history = run.history(0, false).await?;
    let mut events = Vec::new();
    while let Some(event) = history.next().await? {
        events.push(event);
    }
    Ok(events)
}

/// Waits until a worker of the build is there, and takes what it says.
async fn check(client: &Client, check: HistoryCheck) -> anyhow::Result<Vec<CheckedHistory>> {
    let mut all = Vec::new();
    let mut stream = loop {
        match client.check_histories(check.clone()).await {
            Err(ClientError::Refused { reason, .. }) if reason == "NO_WORKER" => {
                tokio::task::yield_now().await;
            }
            other => break other?,
        }
    };
    while let Some(checked) = stream.next().await? {
        all.push(checked);
    }
    Ok(all)
}

fn candidate(node: &RunningNode, build: &str) -> WorkerBuilder {
    node.worker().build_id(build.to_owned()).check_only(true)
}

/// Runs of `order`, of which the second is charged and closed.
async fn recorded(node: &RunningNode) -> anyhow::Result<(RunHandle<u32>, RunHandle<u32>)> {
    let at_once = Duration::from_millis(1);
    let old = RunningWorker::start(node.worker().build_id("1").park_after(at_once).register("order", order))?;
    let client = node.client()?;
    let open = client.workflow::<u32>("order").start(&()).await?;
    until(&open, is_parked).await?;
    let closed = client.workflow::<u32>("order").start(&()).await?;
    closed.signal("charge", &()).await?;
    closed.signal("close", &()).await?;
    closed.result().await?;
    old.stop().await?;
    Ok((open, closed))
}

#[tokio::test]
async fn an_export_is_the_run_as_it_is() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let (open, closed) = recorded(&node).await?;
        for run in [&open, &closed] {
            let events = events(run).await?;
            let file = run.export().await?;
            let history = History::from_bytes(&file)?;
            assert_eq!(history.events(), events);
            assert_eq!(History::from_bytes(&history.to_bytes())?, history);
            Replayer::new().register("order", order).check(&history)?;
            for cut in 0..file.len() {
                assert!(History::from_bytes(&file[..cut]).is_err(), "{cut} of {} bytes", file.len());
            }
        }
        node.shutdown().await?;
    }
    Ok(())
}

/// Code that does not fit is found before it runs, and what is found names both sides.
#[tokio::test]
async fn a_build_is_held_against_the_runs_there_are_and_touches_none() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let (open, closed) = recorded(&node).await?;
        let client = node.client()?;
        let before = (events(&open).await?, events(&closed).await?);

        let _same = RunningWorker::start(candidate(&node, "2").register("order", order))?;
        let _other = RunningWorker::start(candidate(&node, "3").register("order", order_with_fee))?;
        let passed = check(&client, HistoryCheck::of_build("2").sample(10)).await?;
        let runs: Vec<_> = passed.iter().map(|c| (Some(c.run_id), c.verdict.clone())).collect();
        assert_eq!(runs, [(open.run_id(), CheckVerdict::Passed), (closed.run_id(), CheckVerdict::Passed)]);

        let found = check(&client, HistoryCheck::of_build("3").sample(10)).await?;
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].verdict, CheckVerdict::Passed, "it has not come to the charge yet");
        let CheckVerdict::Mismatch { blocked, event_kind } = &found[1].verdict else { panic!("{found:?}") };
        assert_eq!(event_kind, "StepCompleted");
        let at = &before.1[usize::try_from(blocked.at_seq)? - 1];
        assert!(matches!(&at.body, EventBody::StepCompleted { name, .. } if name == "charge"), "{at:?}");
        assert_eq!(
            (blocked.expected.as_str(), blocked.produced.as_str()),
            ("step 'charge' #2", "step 'fee' #2")
        );
        assert!(blocked.source.contains("gate.rs:"), "{blocked:?}");
        assert_eq!((found[1].recorded_build_id.as_str(), blocked.build_id.as_str()), ("1", "3"));

        let open_only = check(&client, HistoryCheck::of_build("3").sample(10).open_only(true)).await?;
        assert_eq!(open_only.iter().map(|c| Some(c.run_id)).collect::<Vec<_>>(), [open.run_id()]);

        // A worker that only checks takes no run, and answers for none.
        let fresh = client.workflow::<u32>("order").start(&()).await?;
        open.signal("charge", &()).await?;
        let asked = fresh.query_with_deadline::<u32>("n", &(), Duration::from_millis(300)).await;
        assert_eq!(asked.err().and_then(|e| e.reason().map(str::to_owned)).as_deref(), Some("NO_WORKER"));
        assert_eq!(events(&fresh).await?.len(), 1);
        assert_eq!(events(&open).await?.len(), before.0.len() + 1, "only the signal came to it");
        assert_eq!(events(&closed).await?, before.1);
        node.shutdown().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_that_works_can_check_too_and_files_are_checked_as_runs_are() -> anyhow::Result<()> {
    let (node, client) = in_memory().await?;
    let (_, closed) = recorded(&node).await?;
    let file = closed.export().await?;
    let _worker = RunningWorker::start(node.worker().build_id("4").register("order", order_with_fee))?;
    let files = HistoryCheck::of_build("4").file("one.history", file.clone()).file("two.history", file);
    let found = check(&client, files).await?;
    let labels: Vec<_> = found.iter().map(|c| c.label.as_str()).collect();
    assert_eq!(labels, ["one.history", "two.history"]);
    assert!(found.iter().all(|c| matches!(c.verdict, CheckVerdict::Mismatch { .. })), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn who_is_not_there_cannot_be_asked() -> anyhow::Result<()> {
    let (node, client) = in_memory().await?;
    let refused = |error: ClientError| error.reason().map(str::to_owned);
    let asked = client.check_histories(HistoryCheck::of_build("9").sample(1)).await;
    let error = asked.err().ok_or_else(|| anyhow::anyhow!("nobody is there"))?;
    assert!(error.to_string().contains("build '9'") && error.to_string().contains("EVERSTEP_CHECK_ONLY"));
    assert_eq!(refused(error).as_deref(), Some("NO_WORKER"));
    let _worker = RunningWorker::start(node.worker().build_id("1").register("order", order))?;
    assert_eq!(check(&client, HistoryCheck::of_build("1").sample(1)).await?, []);
    let asked = client.check_histories(HistoryCheck::of_build("")).await;
    assert_eq!(asked.err().and_then(refused).as_deref(), Some("NO_WORKER"), "it was not named, and works");
    let elsewhere = client.clone().namespace("other");
    elsewhere.create_namespace("other", "").await?;
    let asked = elsewhere.check_histories(HistoryCheck::of_build("1")).await;
    assert_eq!(asked.err().and_then(refused).as_deref(), Some("NO_WORKER"), "of another namespace");
    Ok(())
}

#[tokio::test]
async fn what_is_no_history_is_named() -> anyhow::Result<()> {
    let (node, client) = in_memory().await?;
    let (_, closed) = recorded(&node).await?;
    let file = closed.export().await?;
    let _worker = RunningWorker::start(candidate(&node, "2").register("order", order))?;
    assert_eq!(check(&client, HistoryCheck::of_build("2").file("whole", file.clone())).await?.len(), 1);

    let other = History::from_bytes(&file)?.events().to_vec();
    let gap: Vec<Event> = other.iter().filter(|event| event.seq != 2).cloned().collect();
    let run_id = closed.run_id().ok_or_else(|| anyhow::anyhow!("started here"))?;
    // The first field of the header, the layout, is a byte.
    let mut newer = file.clone();
    let layout =
        newer.windows(2).position(|pair| pair == [8, 1]).ok_or_else(|| anyhow::anyhow!("no layout"))?;
    newer[layout + 1] = 2;
    for (name, data, problem) in [
        ("empty", Vec::new(), "header"),
        ("cut within an event", file[..file.len() - 1].to_vec(), "event"),
        (
            "cut between events",
            file[..everstep_proto::file::write(run_id, &other[..3]).len()].to_vec(),
            "event",
        ),
        ("only a header", everstep_proto::file::header(run_id, "default", 0, None), "no events"),
        ("a picture", b"\x89PNG\r\n\x1a\n and so on".to_vec(), "header"),
        ("a gap", everstep_proto::file::write(run_id, &gap), "2"),
        ("a newer layout", newer, "layout 2"),
        ("a run from its middle", everstep_proto::file::write(run_id, &other[1..]), "1"),
    ] {
        let mut stream = client.check_histories(HistoryCheck::of_build("2").file(name, data)).await?;
        let error = stream.next().await.err().ok_or_else(|| anyhow::anyhow!("{name} was taken"))?;
        assert_eq!(error.reason(), Some("INVALID_HISTORY"), "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains(name) && text.contains(problem), "{name}: {text}");
    }
    // Whichever byte is damaged, the server goes on.
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 1 << (at % 8);
        let mut stream = client.check_histories(HistoryCheck::of_build("2").file("damaged", damaged)).await?;
        match stream.next().await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.reason(), Some("INVALID_HISTORY"), "byte {at}: {error}"),
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_sample_is_spread_and_what_the_build_lacks_is_said() -> anyhow::Result<()> {
    let (node, client) = in_memory().await?;
    let at_once = Duration::from_millis(1);
    let worker = node.worker().build_id("1").park_after(at_once);
    let worker =
        RunningWorker::start(worker.register("order", order).register("ping", ping).register("gone", order))?;
    for _ in 0..12 {
        client.workflow::<u32>("ping").start(&()).await?.result().await?;
    }
    let lost = client.workflow::<u32>("gone").start(&()).await?;
    until(&lost, is_parked).await?;
    for _ in 0..3 {
        until(&client.workflow::<u32>("order").start(&()).await?, is_parked).await?;
    }
    worker.stop().await?;
    let _candidate =
        RunningWorker::start(candidate(&node, "2").register("order", order).register("ping", ping))?;
    let kinds = |found: &[CheckedHistory]| {
        let mut kinds = BTreeMap::new();
        for checked in found.iter().filter(|c| c.verdict == CheckVerdict::Passed) {
            *kinds.entry(checked.workflow_type.clone()).or_insert(0) += 1;
        }
        kinds
    };
    let found = check(&client, HistoryCheck::of_build("2").sample(5)).await?;
    assert_eq!(kinds(&found), BTreeMap::from([("order".to_owned(), 3), ("ping".to_owned(), 2)]));
    let skipped: Vec<_> = found.iter().filter(|c| matches!(c.verdict, CheckVerdict::Skipped(_))).collect();
    assert_eq!(skipped.iter().map(|c| Some(c.run_id)).collect::<Vec<_>>(), [lost.run_id()]);
    let found = check(&client, HistoryCheck::of_build("2").sample(5).workflow_type("ping")).await?;
    assert_eq!(kinds(&found), BTreeMap::from([("ping".to_owned(), 5)]));
    let found = check(&client, HistoryCheck::of_build("2").sample(100)).await?;
    assert_eq!(kinds(&found), BTreeMap::from([("order".to_owned(), 3), ("ping".to_owned(), 12)]));
    Ok(())
}

#[tokio::test]
async fn code_that_panics_does_not_fit() -> anyhow::Result<()> {
    let (node, client) = in_memory().await?;
    recorded(&node).await?;
    let panics =
        |_: Ctx, (): ()| -> std::future::Ready<Result<u32, WorkflowError>> { panic!("when it is made") };
    let _made = RunningWorker::start(candidate(&node, "2").register("order", panics))?;
    let later = |ctx: Ctx, (): ()| async move {
        number(&ctx, "open", 1).await?;
        if ctx.signal::<()>("charge").await.is_ok() {
            panic!("as planned");
        }
        Ok(0)
    };
    let _later = RunningWorker::start(candidate(&node, "3").register("order", later))?;
    for (build, what) in [("2", "panicked"), ("3", "as planned")] {
        let found = check(&client, HistoryCheck::of_build(build).sample(2)).await?;
        let CheckVerdict::Mismatch { blocked, .. } = &found[1].verdict else { panic!("{found:?}") };
        assert!(blocked.produced.contains(what), "{blocked:?}");
    }
    Ok(())
}

/// It may be the history that it died of, so the check does not go on as if nothing had been.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_lost_over_a_check_fails_it() -> anyhow::Result<()> {
    let (node, client) = in_memory().await?;
    recorded(&node).await?;
    let (enter, mut entered) = tokio::sync::mpsc::unbounded_channel();
    let (leave, left) = mpsc::channel::<()>();
    let left = Arc::new(Mutex::new(left));
    let stuck = move |_: Ctx, (): ()| {
        let _ = enter.send(());
        let _ = left.lock().unwrap_or_else(PoisonError::into_inner).recv();
        async { Ok::<u32, WorkflowError>(0) }
    };
    let worker = RunningWorker::start(candidate(&node, "2").register("order", stuck))?;
    let checking = tokio::spawn(async move { check(&client, HistoryCheck::of_build("2").sample(1)).await });
    entered.recv().await;
    drop(worker);
    let error = checking.await?.err().ok_or_else(|| anyhow::anyhow!("the check went on"))?;
    assert!(error.to_string().contains("lost while it checked"), "{error}");
    drop(leave);
    Ok(())
}
