//! What no field says by itself: runs that are closed or of another namespace, pages of another question, a flood of
//! signals.

use everstep::ClientError;
use everstep_proto::api;
use everstep_proto::api::queue_service_client::QueueServiceClient;
use everstep_proto::api::run_service_client::RunServiceClient;
use everstep_proto::api::step_service_client::StepServiceClient;
use tonic::Status;
use tonic::transport::Endpoint;
use tonic_types::StatusExt;

use super::world::{World, json};
use crate::stores;

#[track_caller]
fn reason<T: std::fmt::Debug>(answer: Result<T, Status>) -> String {
    match answer {
        Ok(answer) => panic!("{answer:?} should have been refused"),
        Err(status) => status.get_details_error_info().map(|info| info.reason).unwrap_or_default(),
    }
}

/// What every call about one run says when the run is not there for it to change.
async fn refusals(world: &World, run: api::RunRef) -> anyhow::Result<Vec<String>> {
    let channel = Endpoint::from_shared(world.node.address.clone())?.connect_lazy();
    let mut runs = RunServiceClient::new(channel.clone());
    let mut steps = StepServiceClient::new(channel);
    let (run, name, input) = (Some(run), "other".to_owned(), json("1"));
    let signal = api::SignalRunRequest { run: run.clone(), name: name.clone(), input, ..Default::default() };
    let cancel = api::CancelRunRequest { run: run.clone(), ..Default::default() };
    let terminate = api::TerminateRunRequest { run: run.clone(), ..Default::default() };
    let update = api::UpdateRunRequest { run: run.clone(), name, input: json("1"), ..Default::default() };
    let retry = api::resolve_step_request::Resolution::Retry(everstep_proto::history::RetryStep {});
    let resolve = api::ResolveStepRequest { run, step_id: 1, resolution: Some(retry), ..Default::default() };
    Ok(vec![
        reason(runs.signal_run(signal).await),
        reason(runs.cancel_run(cancel).await),
        reason(runs.terminate_run(terminate).await),
        reason(runs.update_run(update).await),
        reason(steps.resolve_step(resolve).await),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_closed_or_elsewhere_is_changed_by_nobody() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let world = World::on(&store).await?;
        let closed = api::RunRef { run_id: world.closed.clone(), ..api::RunRef::default() };
        assert_eq!(refusals(&world, closed.clone()).await?, ["RUN_CLOSED"; 5]);
        let open = world.run("waiting").await?;
        let elsewhere =
            api::RunRef { namespace: "quiet".to_owned(), run_id: open.clone(), ..api::RunRef::default() };
        assert_eq!(refusals(&world, elsewhere).await?, ["RUN_NOT_FOUND"; 5]);
        let nobodys = api::RunRef { workflow_id: "nobody-has-this".to_owned(), ..api::RunRef::default() };
        assert_eq!(refusals(&world, nobodys).await?, ["RUN_NOT_FOUND"; 5]);
        let other = api::RunRef { workflow_id: "another".to_owned(), ..closed };
        assert_eq!(refusals(&world, other).await?, ["RUN_NOT_FOUND"; 5], "they do not belong together");
        let open = world.node.client()?.handle::<()>(open.parse()?);
        open.signal("go", &()).await?;
        open.result().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_of_a_closed_run_is_over_and_its_run_says_so() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let world = World::on(&store).await?;
        let (run, task_token) = world.attempt().await?;
        let channel = Endpoint::from_shared(world.node.address.clone())?.connect_lazy();
        let mut steps = StepServiceClient::new(channel);
        let beat = api::HeartbeatStepRequest { task_token: task_token.clone(), details: json("1") };
        let answer = steps.heartbeat_step(beat.clone()).await?.into_inner();
        assert!(!answer.cancel_requested);
        world.node.client()?.handle::<()>(run.parse()?).terminate("enough").await?;
        assert_eq!(reason(steps.heartbeat_step(beat).await), "RUN_CLOSED");
        let complete =
            api::CompleteStepRequest { task_token, result: json("1"), ..api::CompleteStepRequest::default() };
        assert_eq!(reason(steps.complete_step(complete).await), "RUN_CLOSED");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_token_belongs_to_its_question() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let world = World::on(&store).await?;
        let channel = Endpoint::from_shared(world.node.address.clone())?.connect_lazy();
        let mut runs = RunServiceClient::new(channel.clone());
        let list = |page_token| api::ListRunsRequest { page_size: 1, page_token, ..Default::default() };
        let token = runs.list_runs(list(String::new())).await?.into_inner().next_page_token;
        runs.list_runs(list(token.clone())).await?;
        let namespace = "quiet".to_owned();
        let others = [
            api::ListRunsRequest { namespace: namespace.clone(), ..list(token.clone()) },
            api::ListRunsRequest { workflow_type: "waiting".to_owned(), ..list(token.clone()) },
            api::ListRunsRequest { parent_run_id: world.closed.clone(), ..list(token.clone()) },
            api::ListRunsRequest { waits_for_build: "b".to_owned(), ..list(token.clone()) },
        ];
        for other in others {
            assert_eq!(reason(runs.list_runs(other).await), "INVALID_PAGE_TOKEN");
        }
        let steps = api::ListStepsRequest { page_token: token.clone(), ..Default::default() };
        assert_eq!(
            reason(StepServiceClient::new(channel.clone()).list_steps(steps).await),
            "INVALID_PAGE_TOKEN"
        );
        let queues = api::ListQueuesRequest { page_token: token, ..Default::default() };
        assert_eq!(reason(QueueServiceClient::new(channel).list_queues(queues).await), "INVALID_PAGE_TOKEN");
    }
    Ok(())
}

/// A run keeps enough room to end by itself, whoever sends it whatever.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_large_signals_is_refused_and_the_run_lives() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let world = World::on(&store).await?;
        let handle = world.node.client()?.handle::<()>(world.run("waiting").await?.parse()?);
        let large = "x".repeat((2 << 20) - 2);
        let mut taken = 0;
        let refused = loop {
            match handle.signal("other", &large).await {
                Ok(_) => taken += 1,
                Err(error) => break error,
            }
        };
        assert!((10..25).contains(&taken), "{taken}");
        assert!(
            matches!(&refused, ClientError::Refused { reason, .. } if reason == "LIMIT_EXCEEDED"),
            "{refused:?}"
        );
        handle.signal("go", &()).await?;
        handle.result().await?;
    }
    Ok(())
}
