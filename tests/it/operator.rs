//! What an operator sees of a node: its readiness while Postgres goes and comes, and its metrics.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use everstep::{Ctx, StepError, WorkflowError};
use everstep_core::{
    Actor, CommandId, DetachReason, Event, EventBody, OpId, Payload, QueueKey, RunId, RunRow, RunStarted,
    RunStatus, Timer, TimerKey, Timestamp, TraceContext, Write,
};
use everstep_dispatch::InProcess;
use everstep_faultproxy::{Fault, Proxy, Rule};
use everstep_store::conformance::{Subject, the_backlog_is_told};
use everstep_store::{Append, RunAppend, StartClaim, Store, Verdict};
use everstep_store_postgres::{PostgresOptions, PostgresStore, migrate};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use everstep_tests::servers::{PostgresServer, require};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::stores::{self, postgres_options};

/// Many times what anything here takes.
const LIMIT: Duration = Duration::from_secs(60);
/// A node has to call itself unready within 3 s; a second more for a machine that is busy. Without a look at the
/// store of its own it would know of a Postgres that is gone after 5 s, when a connection has been given up.
const UNREADY: Duration = Duration::from_secs(4);

/// What a GET is answered with.
pub(crate) async fn get(node: &RunningNode, path: &str) -> anyhow::Result<String> {
    let host = node.address.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Asks until the answer is so, and gives it.
async fn until(
    node: &RunningNode,
    path: &str,
    limit: Duration,
    is: impl Fn(&str) -> bool,
) -> anyhow::Result<String> {
    let mut last = String::new();
    let asking = async {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        loop {
            looks.tick().await;
            last = get(node, path).await?;
            if is(&last) {
                return anyhow::Ok(());
            }
        }
    };
    let asked = tokio::time::timeout(limit, asking).await;
    asked.with_context(|| format!("{path} within {limit:?} said only:\n{last}"))??;
    Ok(last)
}

/// Waits until a node is unready, and gives its words.
pub(crate) async fn unready(node: &RunningNode, limit: Duration) -> anyhow::Result<String> {
    until(node, "/readyz", limit, |said| said.starts_with("HTTP/1.1 503")).await
}

/// Waits until a node is ready.
pub(crate) async fn ready(node: &RunningNode) -> anyhow::Result<()> {
    until(node, "/readyz", LIMIT, |said| said.starts_with("HTTP/1.1 200")).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_unready_while_postgres_is_stopped() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let mut server = PostgresServer::start()?;
    let url = server.create_database().await?;
    migrate(&url).await?;
    let store = Arc::new(PostgresStore::connect(&url, postgres_options()).await?);
    let node = RunningNode::start(store, Arc::new(InProcess::new()), NodeSettings::default()).await?;
    ready(&node).await?;
    for _ in 0..2 {
        server.stop_immediate()?;
        let said = unready(&node, UNREADY).await?;
        ensure!(said.contains("the store did not answer its last call"), "{said}");
        server.start_again()?;
        ready(&node).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_unready_while_postgres_is_silent() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let url = PostgresServer::shared()?.create_database().await?;
    migrate(&url).await?;
    let (proxy, url) = Proxy::before(&url, 1).await?;
    // Nothing that was sent is given up by itself while this test lasts.
    let options = PostgresOptions { answer_limit: 10 * LIMIT, ..postgres_options() };
    let store = Arc::new(PostgresStore::connect(&url, options).await?);
    let node = RunningNode::start(store, Arc::new(InProcess::new()), NodeSettings::default()).await?;
    ready(&node).await?;
    proxy.handle().add(Rule::from(Fault::HalfOpen))?;
    unready(&node, UNREADY).await?;
    proxy.handle().heal();
    ready(&node).await
}

/// A run that is in the store and nowhere else, as whoever wrote it would have it.
async fn plant(store: &dyn Store, status: RunStatus, write: Option<Write>) -> anyhow::Result<()> {
    let run_id = RunId::from_uuid(Uuid::now_v7());
    let at = store.now().await?;
    let workflow_id = format!("planted/{run_id}");
    let started = EventBody::RunStarted(Box::new(RunStarted {
        namespace: "default".to_owned(),
        workflow_id: workflow_id.clone(),
        workflow_type: "planted".to_owned(),
        task_queue: "elsewhere".to_owned(),
        input: Payload::default(),
        request_id: "1".to_owned(),
        run_timeout: None,
        seed: 1,
        trace: TraceContext::default(),
        ..RunStarted::default()
    }));
    let row = RunRow {
        run_id,
        namespace: "default".to_owned(),
        workflow_id: workflow_id.clone(),
        workflow_type: "planted".to_owned(),
        task_queue: "elsewhere".to_owned(),
        status,
        owner: None,
        epoch: 0,
        build_id: String::new(),
        blocked: String::new(),
        cancel_requested: false,
        started_at: at,
        closed_at: status.is_closed().then_some(at),
        last_seq: 1,
    };
    let command_id = CommandId::from_uuid(Uuid::now_v7());
    let event = Event { seq: 1, at, epoch: 0, command_id, actor: Actor::System, body: started };
    let start = StartClaim {
        namespace: "default".to_owned(),
        workflow_id,
        expected: None,
        request_id: "1".to_owned(),
        body_hash: [0; 32],
    };
    let writes = std::iter::once(Write::Run(Box::new(row))).chain(write).collect();
    let run = RunAppend { run_id, start: Some(start), events: Arc::new(vec![event]), writes };
    let reply = store.append(vec![Append::of(run)]).await;
    ensure!(matches!(reply.verdicts[..], [Verdict::Committed]), "{:?}", reply.verdicts);
    Ok(())
}

fn timer(fire_at: Timestamp) -> Option<Write> {
    Some(Write::TimerSet(Timer { key: TimerKey::timer(OpId(1)), fire_at }))
}

/// The value of a metric.
fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_waits_and_what_is_wrong() -> anyhow::Result<()> {
    for test in stores::all().await? {
        let dispatch = Arc::new(InProcess::new());
        let node = RunningNode::start(Arc::clone(&test.store), dispatch, NodeSettings::default()).await?;
        let client = node.client()?;
        client.workflow::<()>("nobody").workflow_id("waits").start(&()).await?;
        let about = |what: &str| format!("{what} on {}", test.name);
        let waits = |said: &str| value(said, "everstep_task_oldest_age_seconds") > 0.5;
        let said =
            until(&node, "/metrics", LIMIT, waits).await.with_context(|| about("a task that waits"))?;
        for quiet in ["everstep_runs_blocked", "everstep_invariant_violations{inv=\"25\"}"] {
            assert_eq!(value(&said, quiet), 0.0, "{}", about(quiet));
        }
        assert_eq!(value(&said, "everstep_timer_lateness_seconds_count"), 0.0, "{}", about("timers"));
        plant(&*test.store, RunStatus::Blocked, None).await?;
        plant(&*test.store, RunStatus::Blocked, None).await?;
        let past = Timestamp::from_micros(test.store.now().await?.as_micros() - 20_000_000);
        plant(&*test.store, RunStatus::Failed, timer(past)).await?;
        plant(&*test.store, RunStatus::Failed, timer(Timestamp::MAX)).await?;
        let told = |said: &str| {
            value(said, "everstep_runs_blocked") == 2.0
                && value(said, "everstep_invariant_violations{inv=\"25\"}") == 2.0
                && value(said, "everstep_timer_lateness_seconds_bucket{le=\"10\"}") == 0.0
                && value(said, "everstep_timer_lateness_seconds_count") > 0.0
        };
        until(&node, "/metrics", LIMIT, told).await.with_context(|| about("what was planted"))?;
        node.shutdown().await?;
    }
    Ok(())
}

/// A step that never ends.
async fn stuck(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
    ctx.step("before", || async { Ok::<_, StepError>(()) }).await?;
    Ok(ctx.step("stuck", std::future::pending::<Result<(), StepError>>).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_of_a_lost_worker_are_counted() -> anyhow::Result<()> {
    for test in stores::all().await? {
        let dispatch = Arc::new(InProcess::new());
        let node = RunningNode::start(Arc::clone(&test.store), dispatch, NodeSettings::default()).await?;
        let worker = RunningWorker::start(node.worker().register("stuck", stuck))?;
        let (client, mut runs): (_, Vec<RunId>) = (node.client()?, Vec::new());
        for n in 0..3 {
            let start = client.workflow::<()>("stuck").workflow_id(format!("stuck/{n}"));
            runs.extend(start.start(&()).await?.run_id());
        }
        // Each has recorded its first step, so that each has its worker.
        let begun = |said: &str| value(said, "everstep_events_appended_total") >= 9.0;
        until(&node, "/metrics", LIMIT, begun).await?;
        drop(worker);
        // On a busy machine it may have lost some before, for it was silent.
        let lost = |said: &str| value(said, "everstep_runs_lost_total") >= 3.0;
        until(&node, "/metrics", LIMIT, lost).await.with_context(|| format!("on {}", test.name))?;
        let mut recorded = 0;
        let lost = |e: &Event| matches!(e.body, EventBody::WorkerDetached { reason: DetachReason::Lost });
        for run in runs {
            let history = test.store.read_events(run, 0, 1_000).await?;
            recorded += history.into_iter().filter(lost).count();
        }
        let counted = |said: &str| value(said, "everstep_runs_lost_total") == recorded as f64;
        until(&node, "/metrics", LIMIT, counted).await.with_context(|| format!("on {}", test.name))?;
        let said = get(&node, "/metrics").await?;
        assert!(value(&said, "everstep_sweep_lag_seconds") < LIMIT.as_secs_f64(), "{said}");
        node.shutdown().await?;
    }
    Ok(())
}

/// On a store of its own, where no other task is older.
#[tokio::test(flavor = "multi_thread")]
async fn the_age_of_the_oldest_task_is_told() -> anyhow::Result<()> {
    for test in stores::all().await? {
        let store = test.store;
        the_backlog_is_told(&Subject::new(Arc::clone(&store))).await;
        let before = store.now().await?;
        let queue = QueueKey { namespace: "default".to_owned(), task_queue: "elsewhere".to_owned() };
        plant(
            &*store,
            RunStatus::Running,
            Some(Write::TaskSet(everstep_core::TaskRow {
                queue,
                workflow_type: String::new(),
                build_id: String::new(),
            })),
        )
        .await?;
        for looks in 0..2 {
            while store.claim_tasks(None, 10).await?.is_empty() {
                tokio::task::yield_now().await;
            }
            let age = store.backlog(10).await?.oldest_task.context("no task")?;
            let passed = store.now().await?.since(before);
            // A look comes as soon as it is due here, so that nothing of the age is lost either.
            let least = Duration::from_secs([1, 3][looks]).into();
            ensure!(age >= least && age <= passed, "on {}: {age:?}, and {passed:?} have passed", test.name);
        }
    }
    Ok(())
}
