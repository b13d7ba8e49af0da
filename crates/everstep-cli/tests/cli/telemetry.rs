//! One run, one connected trace, whatever is killed in between.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use everstep::{Client, RunHandle};
use everstep_core::EventBody;
use everstep_tests::servers::{NatsServer, PostgresServer, require};
use opentelemetry::trace::{
    FutureExt as _, SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tokio::process::Command;

use crate::collector::{Collector, Seen};
use crate::support::{Running, everstep, folder};

const STEPS: u32 = 12;
const CALLER: ([u8; 16], [u8; 8]) = ([0xca; 16], [0x11; 8]);

fn traced<S: AsRef<std::ffi::OsStr>>(
    folder: &Path,
    endpoint: &str,
    service: &str,
    arguments: &[S],
) -> Command {
    let mut command = everstep(folder, arguments);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_SERVICE_NAME", service);
    // Short, so that a process that is killed has sent most of what it had.
    command.env("OTEL_BSP_SCHEDULE_DELAY", "20");
    command
}

fn worker(folder: &Path, endpoint: &str, service: &str, address: &str) -> anyhow::Result<Running> {
    std::fs::create_dir_all(folder.join("sink"))?;
    let path = folder.display().to_string();
    let arguments = ["demo", "crash-worker", "--address", address, "--folder", &path];
    Running::worker(traced(folder, endpoint, service, &arguments), address)
}

/// Starts the run that all these tests look at, below a caller's span if one is given.
async fn start(address: &str, caller: Option<([u8; 16], [u8; 8])>) -> anyhow::Result<RunHandle<Vec<String>>> {
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let client = Client::connect(address)?;
    let starting = async { client.workflow("crash-demo").start(&STEPS).await };
    let Some((trace, span)) = caller else { return Ok(starting.await?) };
    let (trace, span) = (TraceId::from_bytes(trace), SpanId::from_bytes(span));
    let remote = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::NONE);
    let context = opentelemetry::Context::new().with_remote_span_context(remote);
    Ok(starting.with_context(context).await?)
}

/// Waits until so many steps have a recorded result.
async fn steps_done(run: &RunHandle<Vec<String>>, steps: usize) -> anyhow::Result<()> {
    let mut history = run.history(0, true).await?;
    let mut done = 0;
    while done < steps {
        let Some(event) = history.next().await? else { anyhow::bail!("the run ended early") };
        done += usize::from(matches!(event.body, EventBody::StepCompleted { .. }));
    }
    Ok(())
}

/// Which steps the spans of a service are of; no step twice.
fn steps_of(spans: &[Seen], service: &str) -> BTreeSet<String> {
    let all: Vec<String> = spans
        .iter()
        .filter(|s| s.service == service && s.name.starts_with("workflow.step "))
        .map(|s| s.attribute("everstep.step.id").to_owned())
        .collect();
    let steps: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!(steps.len(), all.len(), "{service} sent a step twice: {all:?}");
    steps
}

fn named<'a>(spans: &'a [Seen], prefix: &str) -> Vec<&'a Seen> {
    spans.iter().filter(|s| s.name.starts_with(prefix)).collect()
}

/// Every span hangs below another one of the trace, or below `root`.
fn assert_connected(spans: &[Seen], root: &[u8]) {
    let parents: BTreeMap<&[u8], &Seen> = spans.iter().map(|s| (s.id.as_slice(), s)).collect();
    assert_eq!(parents.len(), spans.len(), "two spans have one id");
    for span in spans {
        let known = span.parent == root || parents.contains_key(span.parent.as_slice());
        assert!(known, "{span:?} hangs below nothing");
        assert_eq!(span.trace, spans[0].trace, "{span:?} is of another trace");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_worker_was_killed_is_one_connected_trace() -> anyhow::Result<()> {
    let folder = folder()?;
    let (collector, endpoint) = Collector::start().await?;
    let arguments =
        ["server", "--lease", "1s", "--listen", "127.0.0.1:0", "--database-url", "sqlite:trace.db"];
    let server = Running::server(traced(folder.path(), &endpoint, "server", &arguments)).await?;
    let first = worker(folder.path(), &endpoint, "first", &server.address)?;
    let run = start(&server.address, Some(CALLER)).await?;
    steps_done(&run, 3).await?;
    first.kill_9().await?;
    let mut before = BTreeSet::new();
    let mut history = run.history(0, false).await?;
    while let Some(event) = history.next().await? {
        if let EventBody::StepCompleted { step, .. } = event.body {
            before.insert(step.0.to_string());
        }
    }
    let second = worker(folder.path(), &endpoint, "second", &server.address)?;
    assert_eq!(run.result().await?.len(), STEPS as usize);
    let id = run.run_id().map(|id| id.to_string()).unwrap_or_default();
    // What ends in order sends what it has.
    assert_eq!(second.terminate().await?, Some(0));
    assert_eq!(server.terminate().await?, Some(0));

    let spans = collector.spans_of(&id);
    assert_connected(&spans, &CALLER.1);
    assert_eq!(spans[0].trace, CALLER.0, "the caller's trace goes on");
    let own = named(&spans, "workflow.run ");
    assert_eq!(own.len(), 1, "the run's span is sent once: {own:?}");
    assert_eq!((own[0].parent.as_slice(), own[0].service.as_str()), (&CALLER.1[..], "server"));
    assert_eq!(own[0].attribute("everstep.run.status"), "completed");
    assert_eq!(named(&spans, "workflow.trigger ").len(), 1);
    for step in named(&spans, "workflow.step ") {
        assert_eq!(step.parent, own[0].id, "{step:?}");
    }
    // Replay is silent: what was recorded before has no span of the worker that replayed it.
    let (first, second) = (steps_of(&spans, "first"), steps_of(&spans, "second"));
    let all: BTreeSet<String> = (1..=STEPS).map(|n| n.to_string()).collect();
    let after: BTreeSet<String> = all.difference(&before).cloned().collect();
    assert_eq!(second, after, "steps before the kill: {before:?}");
    assert!(first.is_subset(&before), "{first:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_crosses_nodes_stays_in_the_trace_of_its_run() -> anyhow::Result<()> {
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    let database = PostgresServer::shared()?.create_database().await?;
    everstep_store_postgres::migrate(&database).await?;
    let (nats, folder) = (NatsServer::start()?, folder()?);
    let (collector, endpoint) = Collector::start().await?;
    let nats_url = nats.url();
    let arguments = ["server", "--listen", "127.0.0.1:0", "--allow-fsync-off"];
    let node = |name| {
        let mut command = traced(folder.path(), &endpoint, name, &arguments);
        command.env("EVERSTEP_DATABASE_URL", &database).env("EVERSTEP_NATS_URL", &nats_url);
        Running::server(command)
    };
    let (here, there) = (node("here").await?, node("there").await?);
    let worker = worker(folder.path(), &endpoint, "worker", &there.address)?;
    let run = start(&here.address, None).await?;
    assert_eq!(run.result().await?.len(), STEPS as usize);
    let id = run.run_id().map(|id| id.to_string()).unwrap_or_default();
    for process in [worker, here, there] {
        assert_eq!(process.terminate().await?, Some(0));
    }
    let spans = collector.spans_of(&id);
    assert_connected(&spans, &[]);
    let roots: Vec<&Seen> = spans.iter().filter(|s| s.parent.is_empty()).collect();
    assert_eq!(roots.len(), 1, "{roots:?}");
    assert!(roots[0].name.starts_with("workflow.run "), "{roots:?}");
    assert_eq!(steps_of(&spans, "worker").len(), STEPS as usize);
    let sent = named(&spans, "send everstep.tasks");
    assert_eq!((sent.len(), sent[0].service.as_str()), (1, "here"), "{sent:?}");
    let received = named(&spans, "receive everstep.tasks");
    assert!(received.iter().any(|s| s.service == "there"), "{received:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_call_hangs_below_its_step() -> anyhow::Result<()> {
    let folder = folder()?;
    std::fs::write(folder.path().join("text.txt"), "A short text. It has two sentences.")?;
    let (collector, endpoint) = Collector::start().await?;
    let done = traced(folder.path(), &endpoint, "demo", &["demo", "summarize", "text.txt"]).output().await?;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let spans = collector.spans();
    let calls = named(&spans, "chat ");
    assert_eq!(calls.len(), 1, "{spans:?}");
    assert_eq!(calls[0].attribute("gen_ai.operation.name"), "chat");
    assert_ne!(calls[0].attribute("gen_ai.provider.name"), "");
    let step = spans.iter().find(|s| s.id == calls[0].parent).map(|s| s.name.as_str());
    assert!(step.is_some_and(|name| name.starts_with("workflow.step ")), "{step:?}");
    Ok(())
}
