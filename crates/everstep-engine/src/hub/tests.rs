//! Waiting for the end of a run that another node ends, on virtual time.

use async_trait::async_trait;
use everstep_core::{
    CommandBody, CommandId, ConflictPolicy, NodeId, ReusePolicy, RunStatus, StartRun, Timestamp,
};
use everstep_dispatch::{self as dispatch, Delivery, Dispatch, HintQueue, Notice, TaskHint};
use everstep_store::MemoryStore;
use uuid::Uuid;

use super::*;
use crate::{Engine, EngineConfig};

/// There are other nodes, and nothing is ever heard of them.
#[derive(Debug)]
struct Deaf;

#[async_trait]
impl Dispatch for Deaf {
    async fn publish(&self, _: TaskHint) -> Result<(), dispatch::Error> {
        Ok(())
    }

    async fn pull(&self, _: &HintQueue, _: usize) -> Result<Vec<Delivery>, dispatch::Error> {
        std::future::pending().await
    }

    async fn ack(&self, _: u64) {}

    async fn notify(&self, _: Notice) {}

    async fn notices(&self) -> Result<Vec<Notice>, dispatch::Error> {
        std::future::pending().await
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn is_connected(&self) -> bool {
        true
    }
}

async fn node(store: &Arc<MemoryStore>, number: u128) -> Engine {
    let config = EngineConfig::new(NodeId::from_uuid(Uuid::from_u128(number)));
    Engine::start(config, Arc::clone(store) as Arc<_>, Arc::new(Deaf)).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_end_that_nobody_tells_of_is_found_within_a_second_or_so() {
    let start = Instant::now();
    let clock = move || Timestamp::from_micros(1_000_000).after(start.elapsed().into());
    let store = Arc::new(MemoryStore::new(clock));
    let (here, there) = (node(&store, 1).await, node(&store, 2).await);
    let run = StartRun {
        namespace: "default".to_owned(),
        workflow_id: "w".to_owned(),
        workflow_type: "order".to_owned(),
        task_queue: "default".to_owned(),
        request_id: "r".to_owned(),
        reuse: ReusePolicy::Reject,
        conflict: ConflictPolicy::Fail,
        ..StartRun::default()
    };
    let run = there.start_run(run).await.unwrap().run_id;
    let waiting = tokio::spawn({
        let here = here.clone();
        async move { here.wait_closed(run, Duration::from_secs(60)).await }
    });
    let mut looks = tokio::time::interval(TAIL_CHECK);
    for _ in 0..5 {
        looks.tick().await;
    }
    assert!(!waiting.is_finished());
    let (id, ended) = (CommandId::from_uuid(Uuid::from_u128(3)), Instant::now());
    let body = CommandBody::Terminate { reason: "enough".to_owned() };
    there.command(run, id, "test".to_owned(), body).await.unwrap();
    let closed = waiting.await.unwrap().unwrap().unwrap();
    assert_eq!(closed.status, RunStatus::Terminated);
    assert!(ended.elapsed() <= TAIL_CHECK * 2, "{:?}", ended.elapsed());
    assert!(here.shared.hub.open_waited_for().is_empty(), "nobody waits any more");
}
