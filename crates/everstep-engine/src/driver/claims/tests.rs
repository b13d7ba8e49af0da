//! Two nodes and one timer, on virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
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
const ALL: usize = 1_000;

fn store() -> Arc<MemoryStore> {
    let start = Instant::now();
    Arc::new(MemoryStore::new(move || Timestamp::from_micros(1_000_000).after(start.elapsed().into())))
}

async fn node(store: &Arc<MemoryStore>, number: u128) -> Engine {
    let config = EngineConfig::new(NodeId::from_uuid(Uuid::from_u128(number)));
    Engine::start(config, Arc::clone(store) as Arc<dyn Store>, Arc::new(InProcess::new())).await.unwrap()
}

/// Of a run that times out after 5 s.
fn start() -> StartRun {
    StartRun {
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
    }
}

/// A run that has timed out while no node was there.
async fn overdue(store: &Arc<MemoryStore>, ticks: &mut Interval) -> RunId {
    let node = node(store, 1).await;
    let run = node.start_run(start()).await.unwrap().run_id;
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
    let claimed = store.claim_timers(ALL, TIMER_CLAIM).await.unwrap().due;
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
    let claims = Claims::default();
    claims.add(&store.claim_timers(ALL, TIMER_CLAIM).await.unwrap().due);
    let (claimed_at, _other) = (Instant::now(), node(&store, 2).await);
    while is_running(&store, run).await {
        ticks.tick().await;
        claims.renew(&*store).await;
        assert!(claimed_at.elapsed() <= WORK_MAX + StdDuration::from_secs(3) + TICK, "it is stuck");
    }
    assert!(claimed_at.elapsed() > WORK_MAX - RENEWAL, "it was taken away after {:?}", claimed_at.elapsed());
    assert!(claims.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_has_fired_is_not_renewed() {
    let (store, mut ticks) = (store(), tokio::time::interval(TICK));
    let run = overdue(&store, &mut ticks).await;
    let _node = node(&store, 2).await;
    let claims = Claims::default();
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
    assert_eq!(claims.held().len(), 1);
    while !claims.held().is_empty() {
        assert!(claims.wait() <= RENEWAL);
        ticks.tick().await;
        claims.renew(&*store).await;
    }
    assert_eq!(claims.wait(), StdDuration::MAX);
}

#[tokio::test(start_paused = true)]
async fn what_comes_due_beside_many_others_waits_for_them_but_not_for_ever() {
    let claims = Claims::default();
    let timer = |number: u128| {
        let key = TimerKey { kind: everstep_core::TimerKind::RunTimeout, id: 0 };
        (RunId::from_uuid(Uuid::from_u128(number)), key)
    };
    let all: Vec<_> = (0..=MANY as u128).map(timer).collect();
    let waited = async || {
        let before = Instant::now();
        claims.gather(false).await;
        before.elapsed()
    };
    assert_eq!(waited().await, GATHER);
    claims.add(&all);
    assert_eq!(waited().await, GATHER_MANY, "they are stuck");
    let (waited, ()) = tokio::join!(waited(), async {
        let mut ticks = tokio::time::interval(GATHER);
        ticks.tick().await;
        ticks.tick().await;
        claims.settled([all[0]]);
    });
    assert_eq!(waited, GATHER, "one of them has fired");
    assert_eq!(claims.held().len(), MANY);
}

#[tokio::test(start_paused = true)]
async fn a_database_whose_clock_was_set_back_is_not_asked_again_and_again() {
    let (back, asked) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicU64::new(0)));
    let (by, count, began) = (Arc::clone(&back), Arc::clone(&asked), Instant::now());
    let store = Arc::new(MemoryStore::new(move || {
        // On virtual time, whoever never waits lets no time pass.
        assert!(count.fetch_add(1, Ordering::Relaxed) < 5_000, "it is asked again and again");
        Timestamp::from_micros(100_000_000 - by.load(Ordering::Relaxed)).after(began.elapsed().into())
    }));
    let (_old, mut ticks) = (node(&store, 1).await, tokio::time::interval(TICK));
    for _ in 0..40 {
        ticks.tick().await;
    }
    // By what the first node reckons, the run of the second has timed out before it began.
    back.store(20_000_000, Ordering::Relaxed);
    let new = node(&store, 2).await;
    let run = new.start_run(start()).await.unwrap().run_id;
    let before = asked.load(Ordering::Relaxed);
    for _ in 0..40 {
        ticks.tick().await;
    }
    let asked = asked.load(Ordering::Relaxed) - before;
    assert!(is_running(&store, run).await, "it timed out early");
    assert!(asked < 400, "asked {asked} times in 4 s");
}
