//! Two nodes and one timer, on virtual time.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_core::{
    ConflictPolicy, NodeId, Payload, ReusePolicy, RunStatus, StartRun, Timestamp, TraceContext,
};
use everstep_dispatch::InProcess;
use everstep_store::{Catalog as _, MemoryStore, Sweep as _};
use tokio::time::Interval;
use uuid::Uuid;

use super::*;
use crate::{Engine, EngineConfig};

const TICK: StdDuration = StdDuration::from_millis(100);
const MANY: usize = 1_000;

fn store() -> Arc<MemoryStore> {
    let start = Instant::now();
    Arc::new(MemoryStore::new(move || Timestamp::from_micros(1_000_000).after(start.elapsed().into())))
}

async fn node(store: &Arc<MemoryStore>, number: u128) -> Engine {
    let config = EngineConfig::new(NodeId::from_uuid(Uuid::from_u128(number)));
    Engine::start(config, Arc::clone(store) as Arc<dyn Store>, Arc::new(InProcess::new())).await.unwrap()
}

/// A run that has timed out while no node was there.
async fn overdue(store: &Arc<MemoryStore>, ticks: &mut Interval) -> RunId {
    let node = node(store, 1).await;
    let start = StartRun {
        namespace: "default".to_owned(),
        workflow_id: "w".to_owned(),
        workflow_type: "order".to_owned(),
        task_queue: "default".to_owned(),
        input: Payload::default(),
        request_id: "r".to_owned(),
        run_timeout: Some(Duration::from_secs(5)),
        reuse: ReusePolicy::Reject,
        conflict: ConflictPolicy::Fail,
        trace: TraceContext::default(),
        identity: "test".to_owned(),
        ..StartRun::default()
    };
    let run = node.start_run(start).await.unwrap().run_id;
    node.shutdown(StdDuration::from_secs(1)).await;
    for _ in 0..60 {
        ticks.tick().await;
    }
    run
}

async fn is_running(store: &MemoryStore, run: RunId) -> bool {
    store.get_run(run).await.unwrap().unwrap().row.status == RunStatus::Running
}

#[tokio::test(start_paused = true)]
async fn a_timer_whose_claimer_dies_fires_within_three_seconds() {
    let (store, mut ticks) = (store(), tokio::time::interval(TICK));
    let run = overdue(&store, &mut ticks).await;
    let claimed = store.claim_timers(MANY, TIMER_CLAIM).await.unwrap().due;
    assert_eq!(claimed.len(), 1);
    let (claimed_at, _other) = (Instant::now(), node(&store, 2).await);
    while is_running(&store, run).await {
        ticks.tick().await;
        assert!(claimed_at.elapsed() <= StdDuration::from_secs(3) + TICK, "it does not fire");
    }
    assert!(claimed_at.elapsed() > StdDuration::from_secs(1), "the claim held");
}

#[tokio::test(start_paused = true)]
async fn a_timer_stays_with_who_still_works_on_it_but_not_for_ever() {
    let (store, mut ticks) = (store(), tokio::time::interval(TICK));
    let run = overdue(&store, &mut ticks).await;
    let mut claims = Claims::default();
    claims.add(&store.claim_timers(MANY, TIMER_CLAIM).await.unwrap().due);
    let (claimed_at, _other) = (Instant::now(), node(&store, 2).await);
    while is_running(&store, run).await {
        ticks.tick().await;
        claims.renew(&*store).await;
        assert!(claimed_at.elapsed() <= WORK_MAX + StdDuration::from_secs(3) + TICK, "it is stuck");
    }
    assert!(claimed_at.elapsed() > WORK_MAX - RENEWAL, "it was taken away after {:?}", claimed_at.elapsed());
    assert!(claims.held.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_has_fired_is_not_renewed() {
    let (store, mut ticks) = (store(), tokio::time::interval(TICK));
    let run = overdue(&store, &mut ticks).await;
    let _node = node(&store, 2).await;
    let mut claims = Claims::default();
    claims.add(
        &store
            .run_tables_sync(run)
            .unwrap()
            .projection
            .timers
            .iter()
            .map(|t| (run, t.key))
            .collect::<Vec<_>>(),
    );
    while is_running(&store, run).await {
        ticks.tick().await;
    }
    assert_eq!(claims.held.len(), 1);
    while !claims.held.is_empty() {
        assert!(claims.wait() <= RENEWAL);
        ticks.tick().await;
        claims.renew(&*store).await;
    }
    assert_eq!(claims.wait(), StdDuration::MAX);
}
