//! Every call that changes something takes effect once for its request id, and tells a repeat from another request.

use std::collections::BTreeSet;
use std::sync::Arc;

use everstep::{Ctx, InDoubt, Refused, StepError, StepType, WorkflowError};
use everstep_core::EventBody;
use everstep_dispatch::InProcess;
use everstep_proto::api::build_service_client::BuildServiceClient;
use everstep_proto::api::namespace_service_client::NamespaceServiceClient;
use everstep_proto::api::queue_service_client::QueueServiceClient;
use everstep_proto::api::run_service_client::RunServiceClient;
use everstep_proto::api::step_service_client::StepServiceClient;
use everstep_proto::{FILE_DESCRIPTOR_SET, api, history};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use prost::Message;
use prost_types::{FieldMask, FileDescriptorSet};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;

use crate::stores;

/// Calls that change nothing, but for what a worker does under its own epochs (Connect) and a sign of life, of which
/// the newest counts (HeartbeatStep).
const READS: [&str; 15] = [
    "BuildService/CheckHistories",
    "BuildService/ListBuilds",
    "NamespaceService/GetNamespace",
    "NamespaceService/ListNamespaces",
    "NamespaceService/ListSearchAttributes",
    "QueueService/GetQueue",
    "QueueService/ListQueues",
    "RunService/ExportHistory",
    "RunService/GetHistory",
    "RunService/GetResult",
    "RunService/GetRun",
    "RunService/GetUpdate",
    "RunService/ListRuns",
    "RunService/QueryRun",
    "StepService/ListSteps",
];
const OWN_RULES: [&str; 2] = ["StepService/HeartbeatStep", "WorkerService/Connect"];

struct Work;

impl StepType for Work {
    const NAME: &'static str = "work";
    type Input = ();
    type Output = u32;
}

/// Where calls go, and what there is to call.
struct World {
    channel: Channel,
    node: RunningNode,
    tokens: Mutex<UnboundedReceiver<String>>,
    begun: Mutex<UnboundedReceiver<()>>,
    doubtful: Box<dyn Fn() -> anyhow::Result<RunningWorker> + Send + Sync>,
    _worker: RunningWorker,
}

async fn waiting(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
    ctx.on_update("add", |_: &u32| Ok::<(), Refused>(()), |_: Ctx, n: u32| async move { Ok(n) });
    Ok(ctx.signal("go").await?)
}

async fn asking(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let end = ctx.run::<Work>(()).await;
    ctx.signal::<()>("go").await?;
    Ok(end?)
}

impl World {
    async fn on(store: &stores::TestStore) -> anyhow::Result<Self> {
        let dispatch = Arc::new(InProcess::new());
        let node = RunningNode::start(Arc::clone(&store.store), dispatch, NodeSettings::default()).await?;
        let (said, tokens) = unbounded_channel();
        let worker = node.worker().register("waiting", waiting).register("asking", asking);
        let worker = worker.register_step::<Work, _, _>(move |step, ()| {
            let _ = said.send(step.task_token());
            async move { Err(step.complete_later()) }
        });
        let (begin, begun) = unbounded_channel();
        let address = node.address.clone();
        let doubtful = move || {
            let begin = begin.clone();
            let workflow = move |ctx: Ctx, (): ()| {
                let begin = begin.clone();
                async move {
                    let step = ctx.step("charge", move || {
                        let begin = begin.clone();
                        async move {
                            let _ = begin.send(());
                            std::future::pending::<Result<u32, StepError>>().await
                        }
                    });
                    Ok::<u32, WorkflowError>(step.in_doubt(InDoubt::AskHuman).await?)
                }
            };
            let builder = everstep::Worker::builder(address.clone()).task_queue("doubt");
            RunningWorker::start(builder.register("doubtful", workflow))
        };
        Ok(Self {
            channel: Endpoint::from_shared(node.address.clone())?.connect_lazy(),
            tokens: Mutex::new(tokens),
            begun: Mutex::new(begun),
            doubtful: Box::new(doubtful),
            _worker: RunningWorker::start(worker)?,
            node,
        })
    }

    fn runs(&self) -> RunServiceClient<Channel> {
        RunServiceClient::new(self.channel.clone())
    }

    /// A new run for a call to be about.
    async fn run(&self, workflow_type: &str, task_queue: &str) -> anyhow::Result<String> {
        let start = self.node.client()?.workflow::<()>(workflow_type).task_queue(task_queue);
        Ok(start.start(&()).await?.run_id().map(|id| id.to_string()).unwrap_or_default())
    }

    /// What the call needs: a run, a step in doubt, or an attempt's token.
    async fn target(&self, rpc: &str) -> anyhow::Result<String> {
        match rpc {
            "StepService/CompleteStep" | "StepService/FailStep" => {
                self.run("asking", "default").await?;
                Ok(self.tokens.lock().await.recv().await.unwrap_or_default())
            }
            "StepService/ResolveStep" => {
                let worker = (self.doubtful)()?;
                let run = self.run("doubtful", "doubt").await?;
                self.begun.lock().await.recv().await;
                drop(worker);
                let handle = self.node.client()?.handle::<()>(run.parse()?);
                let mut history = handle.history(0, true).await?;
                while let Some(event) = history.next().await? {
                    if matches!(event.body, EventBody::StepInDoubt { .. }) {
                        break;
                    }
                }
                Ok(run)
            }
            "RunService/SignalRun"
            | "RunService/CancelRun"
            | "RunService/TerminateRun"
            | "RunService/UpdateRun" => self.run("waiting", "default").await,
            _ => Ok(String::new()),
        }
    }
}

fn payload(other: bool) -> Option<history::Payload> {
    let data = if other { "2" } else { "1" };
    Some(history::Payload { encoding: "json".to_owned(), data: data.into() })
}

fn start(workflow_id: &str, id: &str, other: bool) -> api::StartRunRequest {
    api::StartRunRequest {
        workflow_id: workflow_id.to_owned(),
        workflow_type: "waiting".to_owned(),
        task_queue: if other { "other".to_owned() } else { String::new() },
        input: Some(history::Payload { encoding: "json".to_owned(), data: "null".into() }),
        request_id: id.to_owned(),
        ..api::StartRunRequest::default()
    }
}

/// Makes the call: the same one for the same `other`.
async fn call(world: &World, rpc: &str, target: &str, id: &str, other: bool) -> Result<(), Status> {
    if rpc.starts_with("RunService/") {
        call_run(world, rpc, target, id, other).await
    } else if rpc.starts_with("StepService/") {
        call_step(world, rpc, target, id, other).await
    } else {
        call_admin(world, rpc, id, other).await
    }
}

fn no_row(rpc: &str) -> ! {
    panic!("{rpc} has no row: say how a repeat of it is told, or that it changes nothing")
}

fn text(other: bool) -> String {
    if other { "2" } else { "1" }.to_owned()
}

fn run_ref(target: &str) -> Option<api::RunRef> {
    Some(api::RunRef { run_id: target.to_owned(), ..api::RunRef::default() })
}

async fn call_run(world: &World, rpc: &str, target: &str, id: &str, other: bool) -> Result<(), Status> {
    let (run, request_id, reason) = (run_ref(target), id.to_owned(), text(other));
    let (mut runs, completed) = (world.runs(), api::UpdateStage::Completed.into());
    match rpc {
        "RunService/StartRun" => drop(runs.start_run(start("started", id, other)).await?),
        "RunService/SignalRun" => {
            let input = payload(other);
            let request = api::SignalRunRequest {
                run,
                name: "other".into(),
                input,
                request_id,
                identity: String::new(),
            };
            runs.signal_run(request).await?;
        }
        "RunService/CancelRun" => {
            runs.cancel_run(api::CancelRunRequest { run, reason, request_id, identity: String::new() })
                .await?;
        }
        "RunService/TerminateRun" => {
            let request = api::TerminateRunRequest { run, reason, request_id, identity: String::new() };
            runs.terminate_run(request).await?;
        }
        "RunService/UpdateRun" => {
            let (name, input) = ("add".to_owned(), payload(other));
            let request = api::UpdateRunRequest {
                run,
                name,
                input,
                request_id,
                wait_for: completed,
                ..Default::default()
            };
            runs.update_run(request).await?;
        }
        "RunService/SignalWithStartRun" => {
            let (start, signal_input) = (Some(start("signaled", id, false)), payload(other));
            let request = api::SignalWithStartRunRequest { start, name: "other".into(), signal_input };
            runs.signal_with_start_run(request).await?;
        }
        "RunService/UpdateWithStartRun" => {
            let (start, input) = (Some(start("updated", id, false)), payload(other));
            let name = "add".to_owned();
            let request = api::UpdateWithStartRunRequest {
                start,
                name,
                input,
                wait_for: completed,
                ..Default::default()
            };
            runs.update_with_start_run(request).await?;
        }
        _ => no_row(rpc),
    }
    Ok(())
}

async fn call_step(world: &World, rpc: &str, target: &str, id: &str, other: bool) -> Result<(), Status> {
    let (run, request_id, reason) = (run_ref(target), id.to_owned(), text(other));
    let (task_token, channel) = (target.to_owned(), world.channel.clone());
    match rpc {
        "StepService/ResolveStep" => {
            let resolution = Some(api::resolve_step_request::Resolution::Retry(history::RetryStep {}));
            let request = api::ResolveStepRequest {
                run,
                step_id: 1,
                resolution,
                note: reason,
                request_id,
                ..Default::default()
            };
            StepServiceClient::new(channel).resolve_step(request).await?;
        }
        "StepService/CompleteStep" => {
            let request = api::CompleteStepRequest {
                task_token,
                result: payload(other),
                request_id,
                identity: String::new(),
            };
            StepServiceClient::new(channel).complete_step(request).await?;
        }
        "StepService/FailStep" => {
            let failure =
                history::Failure { kind: reason, non_retryable: true, ..history::Failure::default() };
            let request = api::FailStepRequest {
                task_token,
                failure: Some(failure),
                request_id,
                identity: String::new(),
            };
            StepServiceClient::new(channel).fail_step(request).await?;
        }
        _ => no_row(rpc),
    }
    Ok(())
}

async fn call_admin(world: &World, rpc: &str, id: &str, other: bool) -> Result<(), Status> {
    let (request_id, text, channel) = (id.to_owned(), text(other), world.channel.clone());
    match rpc {
        "QueueService/SetQueueLimits" => {
            let limits = api::QueueLimits { max_running: 1 + u32::from(other), ..Default::default() };
            let request = api::SetQueueLimitsRequest {
                task_queue: "q".into(),
                limits: Some(limits),
                request_id,
                ..Default::default()
            };
            QueueServiceClient::new(channel).set_queue_limits(request).await?;
        }
        "BuildService/AllowBuild" => {
            let (build_id, continues) = ("new".to_owned(), text);
            let request = api::AllowBuildRequest { build_id, continues, request_id, ..Default::default() };
            BuildServiceClient::new(channel).allow_build(request).await?;
        }
        "NamespaceService/CreateNamespace" => {
            let request = api::CreateNamespaceRequest { name: "made".into(), description: text, request_id };
            NamespaceServiceClient::new(channel).create_namespace(request).await?;
        }
        "NamespaceService/UpdateNamespace" => {
            let request = api::UpdateNamespaceRequest {
                name: "default".into(),
                description: text,
                update_mask: Some(FieldMask { paths: vec!["description".into()] }),
                request_id,
                ..Default::default()
            };
            NamespaceServiceClient::new(channel).update_namespace(request).await?;
        }
        "NamespaceService/AddSearchAttributes" => {
            let kind = history::SearchAttributeType::Int.into();
            let request = api::AddSearchAttributesRequest {
                search_attributes: [(format!("a{text}"), kind)].into(),
                request_id,
                ..Default::default()
            };
            NamespaceServiceClient::new(channel).add_search_attributes(request).await?;
        }
        _ => no_row(rpc),
    }
    Ok(())
}

/// Every call of the contract, by the contract itself.
fn calls() -> anyhow::Result<BTreeSet<String>> {
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET)?.file;
    let services = files.into_iter().filter(|f| f.package() == "everstep.api.v1").flat_map(|f| f.service);
    let names = services.flat_map(|s| {
        let service = s.name().to_owned();
        s.method.into_iter().map(move |m| format!("{service}/{}", m.name()))
    });
    Ok(names.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_that_changes_something_takes_effect_once() -> anyhow::Result<()> {
    let (all, mut known) = (calls()?, BTreeSet::new());
    known.extend(READS.into_iter().chain(OWN_RULES).map(str::to_owned));
    assert!(all.is_superset(&known), "gone: {:?}", known.difference(&all));
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let world = World::on(&store).await?;
        for rpc in all.difference(&known) {
            let target = world.target(rpc).await?;
            let first = call(&world, rpc, &target, "id", false).await;
            assert!(first.is_ok(), "{rpc}: {first:?}");
            let again = call(&world, rpc, &target, "id", false).await;
            assert!(again.is_ok(), "{rpc} again: {again:?}");
            let other = call(&world, rpc, &target, "id", true).await.expect_err(rpc);
            let reason = other.get_details_error_info().map(|info| info.reason).unwrap_or_default();
            // An attempt has one end, whatever the id.
            let expected = if rpc.ends_with("/CompleteStep") || rpc.ends_with("/FailStep") {
                "RESULT_CONFLICT"
            } else {
                "IDEMPOTENCY_MISMATCH"
            };
            assert_eq!(reason, expected, "{rpc} with another body: {other:?}");
            let still = call(&world, rpc, &target, "id", false).await;
            assert!(still.is_ok(), "{rpc} once more: {still:?}");
        }
    }
    Ok(())
}

/// A late repeat does not undo what others did since.
#[tokio::test]
async fn a_late_repeat_of_an_administrative_call_undoes_nothing() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let world = World::on(&store).await?;
        let rpc = "NamespaceService/UpdateNamespace";
        call(&world, rpc, "", "first", false).await?;
        call(&world, rpc, "", "second", true).await?;
        call(&world, rpc, "", "first", false).await?;
        let namespace = world.node.client()?.namespace_description("default").await?;
        assert_eq!(namespace.description, "2");
        // Without an id each call is one of its own.
        call(&world, rpc, "", "", false).await?;
        assert_eq!(world.node.client()?.namespace_description("default").await?.description, "1");
    }
    Ok(())
}
