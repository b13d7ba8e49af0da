//! What a namespace sets for the runs that start in it, on every store.

use std::sync::Arc;
use std::time::Duration;

use everstep::client::NamespaceUpdate;
use everstep::{ClientError, Ctx, RetryPolicy, RunError, RunStatus, StepError, WorkflowError};
use everstep_core::EventBody;
use everstep_dispatch::InProcess;
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};

use crate::stores;

/// Its only step fails, and its code says nothing about tries.
async fn failing(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
    Ok(ctx.step("fail", || async { Err::<(), _>(StepError::new("Flaky", "as planned")) }).await?)
}

async fn waiting(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
    Ok(ctx.signal("go").await?)
}

fn soon(maximum_attempts: u32) -> RetryPolicy {
    RetryPolicy {
        initial_interval: Duration::from_millis(20).into(),
        maximum_attempts,
        ..RetryPolicy::default()
    }
}

#[tokio::test]
async fn what_request_and_code_leave_open_the_namespace_says() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let dispatch = Arc::new(InProcess::new());
        let node = RunningNode::start(Arc::clone(&store.store), dispatch, NodeSettings::default()).await?;
        let workflows = node.worker().register("failing", failing).register("waiting", waiting);
        let _worker = RunningWorker::start(workflows)?;
        let client = node.client()?;
        let before = client.workflow::<()>("waiting").start(&()).await?;
        let update = NamespaceUpdate::of("default")
            .default_step_retry(Some(&soon(2)))
            .default_run_retry(Some(&soon(3)))
            .default_run_timeout(Some(Duration::from_secs(3_600)));
        let updated = client.update_namespace(update).await?;
        assert_eq!(updated.default_step_retry, Some(soon(2)));
        assert_eq!(client.namespace_description("default").await?, updated);
        let run = client.workflow::<()>("failing").start(&()).await?;
        let Err(RunError::Ended { status: RunStatus::Failed, .. }) = run.result().await else {
            anyhow::bail!("it fails for good")
        };
        let (mut attempts, mut next) = (0, run.run_id());
        while let Some(id) = next.take() {
            let events = store.store.read_events(id, 0, 1_000).await?;
            let tries = events.iter().filter(|e| matches!(e.body, EventBody::StepFailed { .. })).count();
            assert_eq!(tries, 2, "the step's default holds in each attempt of the run");
            attempts += 1;
            next = events.last().and_then(|e| e.body.successor());
            let EventBody::RunStarted(started) = &events[0].body else { anyhow::bail!("it begins") };
            assert_eq!(started.run_timeout.map(|t| t.to_std()), Some(Duration::from_secs(3_600)));
        }
        assert_eq!(attempts, 3);
        let id = before.run_id().expect("it has one");
        let events = store.store.read_events(id, 0, 1).await?;
        let EventBody::RunStarted(started) = &events[0].body else { anyhow::bail!("it begins") };
        assert_eq!((started.run_timeout, started.retry.as_ref()), (None, None), "it began before");
        // What a request says comes first, and a setting can be taken away.
        let said = client.workflow::<()>("failing").retry(soon(1)).start(&()).await?;
        assert!(said.result().await.is_err());
        assert_eq!(said.describe().await?.run.successor_run_id, "");
        client.update_namespace(NamespaceUpdate::of("default").default_run_retry(None)).await?;
        let plain = client.workflow::<()>("failing").start(&()).await?;
        assert!(plain.result().await.is_err());
        assert_eq!(plain.describe().await?.run.successor_run_id, "");
        let settings = client.namespace_description("default").await?;
        assert_eq!((settings.default_run_retry, settings.default_step_retry), (None, Some(soon(2))));
        // What is no setting is refused.
        let wrong = RetryPolicy { backoff_coefficient: 0.5, ..RetryPolicy::default() };
        let refused =
            client.update_namespace(NamespaceUpdate::of("default").default_step_retry(Some(&wrong))).await;
        assert!(matches!(refused, Err(ClientError::Refused { reason, .. }) if reason == "INVALID_ARGUMENT"));
        let nowhere = client.update_namespace(NamespaceUpdate::of("nowhere").description("x")).await;
        assert!(
            matches!(nowhere, Err(ClientError::Refused { reason, .. }) if reason == "NAMESPACE_NOT_FOUND")
        );
        let nothing = client.update_namespace(NamespaceUpdate::of("default")).await;
        assert!(matches!(nothing, Err(ClientError::Refused { reason, .. }) if reason == "INVALID_ARGUMENT"));
    }
    Ok(())
}
