//! A node with something to ask of it, and a good request of each call.

use std::sync::Arc;

use everstep::client::RunListFilter;
use everstep::{Ctx, QueryError, Refused, StepType, WorkflowError};
use everstep_core::{AttributeType, Run};
use everstep_dispatch::InProcess;
use everstep_proto::api::resolve_step_request::Resolution;
use everstep_proto::history::search_attribute::Value;
use everstep_proto::{api, file, history};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use prost::Message;
use prost_types::{Duration, FieldMask, Timestamp};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::stores;

/// The build of the worker that only checks.
const CANDIDATE: &str = "candidate";

struct Work;

impl StepType for Work {
    const NAME: &'static str = "work";
    type Input = ();
    type Output = u32;
}

/// A node, its workers, and runs to ask things of.
pub(super) struct World {
    pub(super) node: RunningNode,
    tokens: Mutex<UnboundedReceiver<String>>,
    open: String,
    pub(super) closed: String,
    /// The history of the closed one.
    file: Vec<u8>,
    _workers: [RunningWorker; 2],
}

async fn waiting(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
    ctx.on_query("look", |n: u32| Ok::<u32, QueryError>(n));
    ctx.on_update("add", |_: &u32| Ok::<(), Refused>(()), |_: Ctx, n: u32| async move { Ok(n) });
    Ok(ctx.signal("go").await?)
}

async fn asking(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    Ok(ctx.run::<Work>(()).await?)
}

pub(super) fn json(text: &str) -> Option<history::Payload> {
    Some(history::Payload { encoding: "json".to_owned(), data: text.to_owned().into() })
}

/// An id that no other request has.
fn id(n: usize) -> String {
    format!("id-{n}")
}

pub(super) fn failure() -> history::Failure {
    let cause = history::Failure {
        kind: "Io".to_owned(),
        message: "reset".to_owned(),
        details: json("[1]"),
        ..history::Failure::default()
    };
    history::Failure {
        kind: "CardDeclined".to_owned(),
        message: "no money".to_owned(),
        details: json("{}"),
        cause: Some(Box::new(cause)),
        ..history::Failure::default()
    }
}

pub(super) fn policy() -> history::RetryPolicy {
    history::RetryPolicy {
        initial_interval: seconds(1),
        backoff_coefficient: 2.0,
        maximum_interval: seconds(60),
        maximum_attempts: 3,
        non_retryable_kinds: vec!["CardDeclined".to_owned()],
    }
}

pub(super) fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 1_000 })
}

pub(super) fn attributes() -> [(&'static str, Value, AttributeType); 6] {
    use AttributeType as Type;
    let keywords = history::KeywordList { values: vec!["a".to_owned(), "b".to_owned()] };
    [
        ("amount", Value::Int(10), Type::Int),
        ("customer", Value::Keyword("c".to_owned()), Type::Keyword),
        ("price", Value::Float(1.5), Type::Float),
        ("tags", Value::Keywords(keywords), Type::Keywords),
        ("vip", Value::Bool(true), Type::Bool),
        ("when", Value::Time(Timestamp { seconds: 1_700_000_000, nanos: 1_000 }), Type::Time),
    ]
}

pub(super) fn attribute(value: Value) -> history::SearchAttribute {
    history::SearchAttribute { value: Some(value) }
}

fn run_ref(run_id: &str) -> Option<api::RunRef> {
    Some(api::RunRef {
        namespace: "default".to_owned(),
        run_id: run_id.to_owned(),
        workflow_id: String::new(),
    })
}

impl World {
    pub(super) async fn on(store: &stores::TestStore) -> anyhow::Result<Self> {
        let dispatch = Arc::new(InProcess::new());
        // Longer than any test: a worker by hand says nothing of itself.
        let lease = Some(std::time::Duration::from_secs(600));
        let settings = NodeSettings { lease, ..NodeSettings::default() };
        let node = RunningNode::start(Arc::clone(&store.store), dispatch, settings).await?;
        let (said, tokens) = unbounded_channel();
        let worker = node.worker().register("waiting", waiting).register("asking", asking);
        let worker = worker.register_step::<Work, _, _>(move |step, ()| {
            let _ = said.send(step.task_token());
            async move { Err(step.complete_later()) }
        });
        let candidate = node.worker().build_id(CANDIDATE).check_only(true).register("waiting", waiting);
        let workers = [RunningWorker::start(worker)?, RunningWorker::start(candidate)?];
        let mut world = Self {
            node,
            tokens: Mutex::new(tokens),
            open: String::new(),
            closed: String::new(),
            file: Vec::new(),
            _workers: workers,
        };
        let client = world.node.client()?;
        client.add_search_attributes(attributes().map(|(name, _, kind)| (name, kind))).await?;
        client.create_namespace("quiet", "for tests").await?;
        world.open = world.run("waiting").await?;
        world.closed = world.run("waiting").await?;
        let handle = client.handle::<()>(world.closed.parse()?);
        handle.update::<u32>("add", &1).request_id("known").start().await?.result().await?;
        handle.signal("go", &()).await?;
        handle.result().await?;
        world.file = handle.export().await?;
        Ok(world)
    }

    pub(super) async fn run(&self, workflow_type: &str) -> anyhow::Result<String> {
        let run = self.node.client()?.workflow::<()>(workflow_type).start(&()).await?;
        Ok(run.run_id().map(|id| id.to_string()).unwrap_or_default())
    }

    /// Every run can be read, and is what its events say.
    pub(super) async fn all_are_whole(&self) -> anyhow::Result<()> {
        let client = self.node.client()?;
        let filter = RunListFilter { page_size: 1_000, ..RunListFilter::default() };
        let mut page_token = String::new();
        loop {
            let page = client.list(&filter, &page_token).await?;
            for run in page.runs {
                let file = file::read(&client.handle::<()>(run.run_id).export().await?)?;
                anyhow::ensure!(Run::fold(file.run_id, &file.events)?.is_some(), "{} is empty", file.run_id);
            }
            if page.next_page_token.is_empty() {
                return Ok(());
            }
            page_token = page.next_page_token;
        }
    }

    /// A run that waits for an attempt of a queued step, and the attempt's token.
    pub(super) async fn attempt(&self) -> anyhow::Result<(String, String)> {
        let run = self.run("asking").await?;
        Ok((run, self.tokens.lock().await.recv().await.unwrap_or_default()))
    }

    async fn token(&self) -> anyhow::Result<String> {
        Ok(self.attempt().await?.1)
    }

    /// A good request of the call, the `variant`th kind of it, unlike any with another `n`.
    pub(super) async fn good(&self, rpc: &str, variant: usize, n: usize) -> anyhow::Result<Option<Vec<u8>>> {
        let good = match rpc.split_once('/') {
            Some(("RunService", name)) => self.of_runs(name, variant, n).await?,
            Some(("StepService", name)) => self.of_steps(name, variant, n).await?,
            Some(("QueueService", name)) if variant == 0 => of_queues(name, n),
            Some(("NamespaceService", name)) if variant == 0 => of_namespaces(name, n),
            Some(("BuildService", name)) => of_builds(name, variant, n, &self.file),
            _ => None,
        };
        Ok(good)
    }

    async fn of_runs(&self, name: &str, variant: usize, n: usize) -> anyhow::Result<Option<Vec<u8>>> {
        let (request_id, identity) = (id(n), "tester".to_owned());
        let (run, closed) = (run_ref(&self.open), run_ref(&self.closed));
        if name == "ListRuns" {
            return Ok(list(variant, &self.open));
        }
        if variant > 0 {
            return Ok(None);
        }
        let (reason, completed) = ("because".to_owned(), api::UpdateStage::Completed.into());
        Ok(Some(match name {
            "StartRun" => start(n).encode_to_vec(),
            "GetRun" => api::GetRunRequest { run }.encode_to_vec(),
            "ExportHistory" => api::ExportHistoryRequest { run }.encode_to_vec(),
            "GetHistory" => {
                let (after_seq, limit) = (1, 2);
                api::GetHistoryRequest { run, after_seq, limit, follow: false }.encode_to_vec()
            }
            "SignalRun" => {
                let (name, input) = ("other".to_owned(), json("1"));
                api::SignalRunRequest { run, name, input, request_id, identity }.encode_to_vec()
            }
            "CancelRun" => {
                let run = run_ref(&self.run("waiting").await?);
                api::CancelRunRequest { run, reason, request_id, identity }.encode_to_vec()
            }
            "TerminateRun" => {
                let run = run_ref(&self.run("waiting").await?);
                api::TerminateRunRequest { run, reason, request_id, identity }.encode_to_vec()
            }
            "GetResult" => api::GetResultRequest { run: closed, wait: seconds(1) }.encode_to_vec(),
            "QueryRun" => {
                api::QueryRunRequest { run, name: "look".to_owned(), input: json("1") }.encode_to_vec()
            }
            "UpdateRun" => {
                let (name, input, wait) = ("add".to_owned(), json("1"), seconds(1));
                let wait_for = completed;
                api::UpdateRunRequest { run, name, input, request_id, identity, wait_for, wait }
                    .encode_to_vec()
            }
            "GetUpdate" => {
                let (update_id, wait_for, wait) = ("known".to_owned(), completed, seconds(1));
                api::GetUpdateRequest { run: closed, update_id, wait_for, wait }.encode_to_vec()
            }
            "SignalWithStartRun" => {
                let (start, name, signal_input) = (Some(with(n)), "other".to_owned(), json("1"));
                api::SignalWithStartRunRequest { start, name, signal_input }.encode_to_vec()
            }
            "UpdateWithStartRun" => {
                let (start, name, input) = (Some(with(n)), "add".to_owned(), json("1"));
                let (update_id, wait_for, wait) = (id(n), completed, seconds(1));
                api::UpdateWithStartRunRequest { start, name, input, update_id, wait_for, wait }
                    .encode_to_vec()
            }
            _ => return Ok(None),
        }))
    }

    async fn of_steps(&self, name: &str, variant: usize, n: usize) -> anyhow::Result<Option<Vec<u8>>> {
        let (request_id, identity) = (id(n), "tester".to_owned());
        let said = [
            Resolution::Completed(json("1").unwrap_or_default()),
            Resolution::Failed(failure()),
            Resolution::Retry(history::RetryStep {}),
        ];
        if variant > 0 && (name != "ResolveStep" || variant >= said.len()) {
            return Ok(None);
        }
        Ok(Some(match name {
            "ListSteps" => {
                let request = api::ListStepsRequest {
                    namespace: "default".to_owned(),
                    state: api::StepState::Running.into(),
                    task_queue: "default".to_owned(),
                    run_id: self.open.clone(),
                    page_size: 5,
                    page_token: String::new(),
                };
                request.encode_to_vec()
            }
            "ResolveStep" => {
                let request = api::ResolveStepRequest {
                    run: run_ref(&self.open),
                    step_id: 1,
                    attempt: 1,
                    resolution: said.into_iter().nth(variant),
                    note: "looked".to_owned(),
                    request_id,
                    identity,
                };
                request.encode_to_vec()
            }
            "CompleteStep" => {
                let (task_token, result) = (self.token().await?, json("1"));
                api::CompleteStepRequest { task_token, result, request_id, identity }.encode_to_vec()
            }
            "FailStep" => {
                let (task_token, failure) = (self.token().await?, Some(failure()));
                api::FailStepRequest { task_token, failure, request_id, identity }.encode_to_vec()
            }
            "HeartbeatStep" => {
                let (task_token, details) = (self.token().await?, json("1"));
                api::HeartbeatStepRequest { task_token, details }.encode_to_vec()
            }
            _ => return Ok(None),
        }))
    }
}

fn start(n: usize) -> api::StartRunRequest {
    api::StartRunRequest {
        namespace: "default".to_owned(),
        workflow_id: id(n),
        workflow_type: "waiting".to_owned(),
        task_queue: "default".to_owned(),
        input: json("null"),
        request_id: id(n),
        run_timeout: seconds(600),
        reuse_policy: api::ReusePolicy::Reject.into(),
        conflict_policy: api::ConflictPolicy::UseExisting.into(),
        identity: "tester".to_owned(),
        wait: Some(Duration { seconds: 0, nanos: 1_000 }),
        start_delay: Some(Duration { seconds: 0, nanos: 1_000 }),
        retry_policy: Some(policy()),
        memo: json("1").into_iter().map(|entry| ("note".to_owned(), entry)).collect(),
        search_attributes: attributes().map(|(name, value, _)| (name.to_owned(), attribute(value))).into(),
    }
}

/// A start that something comes with.
fn with(n: usize) -> api::StartRunRequest {
    api::StartRunRequest { start_delay: None, ..start(n) }
}

fn list(variant: usize, run: &str) -> Option<Vec<u8>> {
    let base = api::ListRunsRequest {
        namespace: "default".to_owned(),
        workflow_id: "workflow-1".to_owned(),
        workflow_type: "waiting".to_owned(),
        statuses: vec![api::RunStatus::Running.into()],
        page_size: 5,
        ..api::ListRunsRequest::default()
    };
    let filters = attributes().map(|(name, value, kind)| {
        let value = match value {
            // One of them is asked for.
            Value::Keywords(_) => Value::Keyword("a".to_owned()),
            other => other,
        };
        let unordered = matches!(kind, AttributeType::Keywords | AttributeType::Bool);
        let op = if unordered { api::Comparison::Ne } else { api::Comparison::Ge };
        api::AttributeFilter { name: name.to_owned(), op: op.into(), value: Some(attribute(value)) }
    });
    let all = [
        api::ListRunsRequest {
            parent_run_id: run.to_owned(),
            attribute_filters: filters.into(),
            ..base.clone()
        },
        api::ListRunsRequest { waits_for_build: "b".to_owned(), ..base },
    ];
    all.get(variant).map(Message::encode_to_vec)
}

fn of_queues(name: &str, n: usize) -> Option<Vec<u8>> {
    let (namespace, task_queue) = ("default".to_owned(), "limited".to_owned());
    Some(match name {
        "GetQueue" => api::GetQueueRequest { namespace, task_queue }.encode_to_vec(),
        "ListQueues" => {
            api::ListQueuesRequest { namespace, page_size: 5, page_token: String::new() }.encode_to_vec()
        }
        "SetQueueLimits" => {
            let limits = Some(api::QueueLimits { max_running: 5, max_per_second: 2.5, burst: 3 });
            let (request_id, identity) = (id(n), "tester".to_owned());
            api::SetQueueLimitsRequest { namespace, task_queue, limits, request_id, identity }.encode_to_vec()
        }
        _ => return None,
    })
}

fn of_namespaces(name: &str, n: usize) -> Option<Vec<u8>> {
    let (request_id, identity, namespace) = (id(n), "tester".to_owned(), "default".to_owned());
    Some(match name {
        "CreateNamespace" => {
            let (name, description) = (format!("team-{n}"), "for tests".to_owned());
            api::CreateNamespaceRequest { name, description, request_id }.encode_to_vec()
        }
        "GetNamespace" => api::GetNamespaceRequest { name: namespace }.encode_to_vec(),
        "ListNamespaces" => {
            api::ListNamespacesRequest { page_size: 5, page_token: String::new() }.encode_to_vec()
        }
        "UpdateNamespace" => {
            let paths = ["description", "default_step_retry", "default_run_retry", "default_run_timeout"];
            let request = api::UpdateNamespaceRequest {
                name: "quiet".to_owned(),
                description: "for tests".to_owned(),
                default_step_retry: Some(policy()),
                default_run_retry: Some(policy()),
                default_run_timeout: seconds(600),
                update_mask: Some(FieldMask { paths: paths.map(str::to_owned).into() }),
                request_id,
                identity,
            };
            request.encode_to_vec()
        }
        "AddSearchAttributes" => {
            let kind = history::SearchAttributeType::Int.into();
            let search_attributes = [("amount".to_owned(), kind)].into();
            api::AddSearchAttributesRequest { namespace, search_attributes, request_id, identity }
                .encode_to_vec()
        }
        "ListSearchAttributes" => api::ListSearchAttributesRequest { namespace }.encode_to_vec(),
        _ => return None,
    })
}

fn of_builds(name: &str, variant: usize, n: usize, file: &[u8]) -> Option<Vec<u8>> {
    let namespace = "default".to_owned();
    Some(match (name, variant) {
        ("ListBuilds", 0) => api::ListBuildsRequest { namespace }.encode_to_vec(),
        ("AllowBuild", 0) => {
            let request = api::AllowBuildRequest {
                namespace,
                task_queue: "default".to_owned(),
                build_id: "new".to_owned(),
                continues: "old".to_owned(),
                request_id: id(n),
                identity: "tester".to_owned(),
            };
            request.encode_to_vec()
        }
        ("CheckHistories", 0) => plan().encode_to_vec(),
        ("CheckHistories", 1) => {
            let request = api::CheckHistoriesRequest {
                label: "a.history".to_owned(),
                data: file.to_vec().into(),
                last: true,
                ..api::CheckHistoriesRequest::default()
            };
            request.encode_to_vec()
        }
        _ => return None,
    })
}

/// The first message of a caller that has histories checked.
pub(super) fn plan() -> api::CheckHistoriesRequest {
    api::CheckHistoriesRequest {
        namespace: "default".to_owned(),
        build_id: CANDIDATE.to_owned(),
        sample: 1,
        workflow_types: vec!["waiting".to_owned()],
        ..api::CheckHistoriesRequest::default()
    }
}
