//! A load of runs with steps, a timer and a signal, and the account of what its clients were told. The clients
//! and the workflow code live in the test, which nothing here kills; nodes are processes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use everstep::client::{RunDescription, RunListFilter};
use everstep::{Client, ClientError, Ctx, RunHandle, RunId, StepError, Worker, WorkflowError};
use everstep_core::{DetachReason, Event, EventBody};
use everstep_tests::cluster::RunningWorker;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::run;

pub(crate) const WORKFLOW: &str = "errand";
/// Not the default queue: there, a worker that does not have this workflow would block its runs.
const QUEUE: &str = "errands";
const WORD: &str = "word";
const STEPS: [u32; 2] = [1, 3];
/// Longest wait for anything; only a failure waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// What clients were told, and what the steps did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// Starts that were answered with a run id, by workflow id.
    pub(crate) started: BTreeMap<String, RunId>,
    /// Workflow ids whose signal was accepted.
    pub(crate) signaled: BTreeSet<String>,
    /// Workflow ids whose result a client has seen.
    pub(crate) completed: BTreeSet<String>,
    /// How often a step's closure ran, by run and step.
    pub(crate) effects: BTreeMap<(RunId, u32), u32>,
}

impl Told {
    /// Answers so far.
    pub(crate) fn answers(&self) -> usize {
        self.started.len() + self.signaled.len() + self.completed.len()
    }
}

/// A [`Told`] that is being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account(Arc<watch::Sender<Told>>);

impl Account {
    pub(crate) fn so_far(&self) -> Told {
        self.0.borrow().clone()
    }

    /// Waits until there were so many answers.
    pub(crate) async fn answers(&self, count: usize) -> anyhow::Result<()> {
        let mut told = self.0.subscribe();
        timeout(PATIENCE, told.wait_for(|told| told.answers() >= count)).await.context("no answers")??;
        Ok(())
    }

    fn note(&self, change: impl FnOnce(&mut Told)) {
        self.0.send_modify(change);
    }
}

/// A worker in this process; what it held is lost when the value is dropped.
pub(crate) fn worker(address: &str, account: &Account) -> anyhow::Result<RunningWorker> {
    let account = account.clone();
    let errand = move |ctx: Ctx, id: String| errand(ctx, id, account.clone());
    RunningWorker::start(Worker::builder(address).task_queue(QUEUE).register(WORKFLOW, errand))
}

async fn errand(ctx: Ctx, id: String, account: Account) -> Result<String, WorkflowError> {
    let effect = |name: &'static str| {
        let account = account.clone();
        ctx.step(name, move || {
            let account = account.clone();
            async move {
                let info = everstep::step_info().ok_or_else(|| StepError::new("NoStep", "not in a step"))?;
                account.note(|told| *told.effects.entry((info.run_id, info.step_id)).or_default() += 1);
                Ok::<_, StepError>(name.to_owned())
            }
        })
    };
    let first = effect("leave").await?;
    ctx.sleep(Duration::from_millis(300)).await;
    let word: String = ctx.signal(WORD).await?;
    // Behind the word, so that a run that is left without one has something to do still.
    let last = effect("return").await?;
    Ok(format!("{id} {first} {last} {word}"))
}

fn expected(id: &str) -> String {
    format!("{id} leave return {id}")
}

/// Clients that start, signal and await runs until they are dropped, or their server fails them.
#[derive(Debug)]
pub(crate) struct Clients(JoinSet<Result<(), ClientError>>);

impl Clients {
    /// Clients that are not put off: one that a call failed goes on with new runs. `prefix` begins the workflow ids.
    pub(crate) fn stubborn(address: &str, prefix: &str, account: &Account) -> anyhow::Result<Self> {
        let mut clients = JoinSet::new();
        for number in 0..2 {
            let (client, account) = (Client::connect(address)?, account.clone());
            let prefix = format!("{prefix}-{number}");
            clients.spawn(async move {
                let mut life = 0u32;
                while client_loop(client.clone(), format!("{prefix}-{life}"), account.clone()).await.is_err()
                {
                    life += 1;
                }
                Ok(())
            });
        }
        Ok(Self(clients))
    }

    /// Clients that end with the first call that fails. `prefix` begins the workflow ids.
    pub(crate) fn start(address: &str, prefix: &str, account: &Account) -> anyhow::Result<Self> {
        let mut clients = JoinSet::new();
        for number in 0..4 {
            let (client, account) = (Client::connect(address)?, account.clone());
            clients.spawn(client_loop(client, format!("{prefix}-{number}"), account));
        }
        Ok(Self(clients))
    }

    /// Ends them in the middle of whatever they do, and says whether one had been failed before.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let failed = self.0.try_join_next();
        self.0.shutdown().await;
        if let Some(ended) = failed {
            ended??;
        }
        Ok(())
    }
}

/// Of three runs one is left without its word, one is left before its end, and one is awaited.
async fn client_loop(client: Client, prefix: String, account: Account) -> Result<(), ClientError> {
    for number in 0u32.. {
        let id = format!("{prefix}-{number}");
        let run: RunHandle<String> =
            client.workflow(WORKFLOW).task_queue(QUEUE).workflow_id(&id).start(&id).await?;
        let Some(run_id) = run.run_id() else { continue };
        account.note(|told| {
            told.started.insert(id.clone(), run_id);
        });
        if number % 3 == 0 {
            continue;
        }
        run.signal(WORD, &id).await?;
        account.note(|told| {
            told.signaled.insert(id.clone());
        });
        if number % 3 == 2 && run.result().await.is_ok_and(|result| result == expected(&id)) {
            account.note(|told| {
                told.completed.insert(id.clone());
            });
        }
    }
    Ok(())
}

/// What of the account this server does not know; empty is good.
pub(crate) async fn losses(address: &str, told: &Told) -> anyhow::Result<Vec<String>> {
    let client = Client::connect(address)?;
    let runs = all_runs(&client).await?;
    let mut losses = Vec::new();
    for (id, run_id) in &told.started {
        let Some(found) = runs.iter().find(|r| r.run_id == *run_id && r.run.workflow_id == *id) else {
            losses.push(format!("{id}: its start was acknowledged, and there is no run {run_id}"));
            continue;
        };
        let events = history(&client, *run_id).await?;
        if told.signaled.contains(id) && !events.iter().any(is_word) {
            losses.push(format!("{id}: its signal was acknowledged, and is not in the history"));
        }
        if told.completed.contains(id) && found.status.as_str() != "completed" {
            losses.push(format!("{id}: a client has its result, and it is {}", found.status.as_str()));
        }
    }
    Ok(losses)
}

/// Sends every open run its word if nobody has, and sees all runs through. Checks each history, and says how
/// often a worker was lost.
pub(crate) async fn finish(address: &str) -> anyhow::Result<usize> {
    let client = Client::connect(address)?;
    let runs = all_runs(&client).await?;
    for run in &runs {
        let closed = run.status.is_closed();
        if !closed && !history(&client, run.run_id).await?.iter().any(is_word) {
            client.handle::<String>(run.run_id).signal(WORD, &run.run.workflow_id).await?;
        }
    }
    let mut lost = 0;
    for run in &runs {
        let id = &run.run.workflow_id;
        let result = timeout(PATIENCE, client.handle::<String>(run.run_id).result()).await;
        let result = result.with_context(|| format!("{id} does not end"))??;
        ensure!(result == expected(id), "{id}: {result}");
        let events = history(&client, run.run_id).await?;
        ensure!(events.iter().zip(1..).all(|(e, seq)| e.seq == seq), "{id}: a gap: {events:?}");
        let steps: Vec<u32> = events.iter().filter_map(completed_step).collect();
        ensure!(steps == STEPS, "{id}: steps {steps:?} have results");
        lost += events.iter().filter(|e| is_loss(e)).count();
    }
    Ok(lost)
}

/// `admin rebuild --check` is content, and has seen so many runs.
pub(crate) async fn rebuild_check(folder: &Path, database: &str) -> anyhow::Result<usize> {
    let done = run(folder, &["admin", "rebuild", "--check", "--database-url", database]).await?;
    ensure!(done.code == Some(0) && done.stderr.contains(", 0 different"), "{done:?}");
    let runs = done.stderr.split_whitespace().next().context("it says nothing")?;
    Ok(runs.parse()?)
}

async fn all_runs(client: &Client) -> anyhow::Result<Vec<RunDescription>> {
    let workflow_type = Some(WORKFLOW.to_owned());
    let filter = RunListFilter { workflow_type, page_size: 1000, ..Default::default() };
    let (mut runs, mut token) = (Vec::new(), String::new());
    loop {
        let page = client.list(&filter, &token).await?;
        runs.extend(page.runs);
        if page.next_page_token.is_empty() {
            return Ok(runs);
        }
        token = page.next_page_token;
    }
}

async fn history(client: &Client, run: RunId) -> anyhow::Result<Vec<Event>> {
    let mut stream = client.handle::<String>(run).history(0, false).await?;
    let mut events = Vec::new();
    while let Some(event) = stream.next().await? {
        events.push(event);
    }
    Ok(events)
}

fn is_word(event: &Event) -> bool {
    matches!(&event.body, EventBody::SignalReceived { name, .. } if name == WORD)
}

fn is_loss(event: &Event) -> bool {
    matches!(&event.body, EventBody::WorkerDetached { reason: DetachReason::Lost })
}

fn completed_step(event: &Event) -> Option<u32> {
    match &event.body {
        EventBody::StepCompleted { step, .. } => Some(step.0),
        _ => None,
    }
}
