//! The suite that every implementation of [`Dispatch`] passes.
//!
//! An adapter's test implements [`Harness`] and awaits [`suite`], which panics at the first promise that is
//! not kept. The cases use names of their own, so they can share a server. Nothing is asserted by the
//! absence of a message within some time: a second, later message shows that the first never comes.

#![expect(clippy::panic, clippy::expect_used, reason = "a test suite fails by panicking")]

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use everstep_core::{NodeId, QueueKey, RunId, TraceContext};
use tokio::time::timeout;
use uuid::Uuid;

use crate::{Delivery, Dispatch, HintQueue, Notice, TaskHint};

/// How long anything may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an implementation promises beyond the trait.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// A hint that was returned but not acknowledged comes again, within the suite's patience of 30 s.
    pub redelivers: bool,
    /// Two nodes of the harness reach each other.
    pub shared: bool,
}

/// How the suite gets at an implementation.
#[async_trait]
pub trait Harness: Send + Sync {
    /// What to expect.
    fn traits(&self) -> Traits;

    /// One more node of the same system; the same one again if it is not shared.
    async fn node(&self) -> Arc<dyn Dispatch>;
}

/// Runs every case.
///
/// # Panics
/// When the implementation breaks a promise.
pub async fn suite(harness: &dyn Harness) {
    reports_what_it_is(harness).await;
    publish_pull_ack(harness).await;
    pull_respects_max(harness).await;
    a_waiting_pull_is_woken(harness).await;
    pullers_share_a_queue(harness).await;
    queues_are_separate(harness).await;
    odd_names_are_separate(harness).await;
    a_dropped_pull_loses_nothing(harness).await;
    dropped_pulls_still_get_on(harness).await;
    concurrent_drops_lose_nothing(harness).await;
    duplicates_are_harmless(harness).await;
    unacknowledged_comes_again(harness).await;
    notices_reach_the_others(harness).await;
    notices_survive_dropped_waits(harness).await;
}

fn id() -> Uuid {
    Uuid::new_v4()
}

/// A queue that no other case knows.
fn fresh_queue() -> HintQueue {
    HintQueue::runs(QueueKey { namespace: "conformance".to_owned(), task_queue: format!("queue-{}", id()) })
}

fn hint(queue: &HintQueue) -> TaskHint {
    let (needs, build_id) = ("work".to_owned(), "green".to_owned());
    TaskHint { needs, build_id, passes: 2, ..TaskHint::new(RunId::from_uuid(id()), queue.clone()) }
}

async fn publish(node: &dyn Dispatch, queue: &HintQueue) -> TaskHint {
    let hint = hint(queue);
    node.publish(hint.clone()).await.expect("publish works");
    hint
}

async fn pull(node: &dyn Dispatch, queue: &HintQueue, max: usize) -> Vec<Delivery> {
    match timeout(PATIENCE, node.pull(queue, max)).await {
        Ok(taken) => {
            let taken = taken.expect("pull works");
            assert!(!taken.is_empty(), "a pull waits until there is something");
            assert!(taken.len() <= max, "asked for {max}, got {}", taken.len());
            taken
        }
        Err(_) => panic!("no hint came to queue {queue:?}"),
    }
}

/// Pulls and acknowledges until `count` different runs were seen; a run that comes twice is a failure.
async fn pull_all(node: &dyn Dispatch, queue: &HintQueue, count: usize) -> HashSet<RunId> {
    let mut seen = HashSet::new();
    while seen.len() < count {
        for delivery in pull(node, queue, 7).await {
            assert!(seen.insert(delivery.hint.run_id), "{} came twice", delivery.hint.run_id);
            node.ack(delivery.token).await;
        }
    }
    seen
}

/// Polls `future` once and drops it.
fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

async fn reports_what_it_is(harness: &dyn Harness) {
    let node = harness.node().await;
    assert_eq!(node.is_shared(), harness.traits().shared);
    assert!(node.is_connected());
}

async fn publish_pull_ack(harness: &dyn Harness) {
    let (from, to) = (harness.node().await, harness.node().await);
    let queue = fresh_queue();
    let mut sent = hint(&queue);
    sent.trace = TraceContext {
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        tracestate: "vendor=value".to_owned(),
    };
    from.publish(sent.clone()).await.expect("publish works");
    let taken = pull(&*to, &queue, 10).await;
    assert_eq!(taken.len(), 1);
    assert_eq!((&taken[0].hint, taken[0].attempt), (&sent, 1));
    to.ack(taken[0].token).await;
    // Acknowledging twice, or what was never delivered, does no harm.
    to.ack(taken[0].token).await;
    to.ack(u64::MAX).await;
    let next = publish(&*from, &queue).await;
    assert_eq!(pull(&*to, &queue, 10).await[0].hint, next);
}

async fn pull_respects_max(harness: &dyn Harness) {
    let node = harness.node().await;
    let queue = fresh_queue();
    let mut sent = HashSet::new();
    for _ in 0..10 {
        sent.insert(publish(&*node, &queue).await.run_id);
    }
    let first = pull(&*node, &queue, 3).await;
    assert_eq!(first.len(), 3, "a pull takes what is there, up to its maximum");
    let mut got: HashSet<RunId> = first.iter().map(|delivery| delivery.hint.run_id).collect();
    for delivery in first {
        node.ack(delivery.token).await;
    }
    got.extend(pull_all(&*node, &queue, 7).await);
    assert_eq!(got, sent);
}

async fn a_waiting_pull_is_woken(harness: &dyn Harness) {
    let (from, to) = (harness.node().await, harness.node().await);
    let queue = fresh_queue();
    let mut waiting = pin!(pull(&*to, &queue, 1));
    assert!(
        waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(),
        "a pull of an empty queue waits"
    );
    let (taken, sent) = tokio::join!(waiting, publish(&*from, &queue));
    assert_eq!(taken[0].hint, sent);
    to.ack(taken[0].token).await;
}

async fn pullers_share_a_queue(harness: &dyn Harness) {
    let (a, b) = (harness.node().await, harness.node().await);
    let queue = fresh_queue();
    let mut sent = HashSet::new();
    for _ in 0..60 {
        sent.insert(publish(&*a, &queue).await.run_id);
    }
    let mut got = HashSet::new();
    // In turns first, so that both are known to be served, then at the same time.
    for _ in 0..5 {
        for node in [&a, &b] {
            for delivery in pull(&**node, &queue, 2).await {
                assert!(got.insert(delivery.hint.run_id), "a run went to both pullers");
                node.ack(delivery.token).await;
            }
        }
    }
    while got.len() < sent.len() {
        let (node, taken) = tokio::select! {
            taken = pull(&*a, &queue, 2) => (&a, taken),
            taken = pull(&*b, &queue, 2) => (&b, taken),
        };
        for delivery in taken {
            assert!(got.insert(delivery.hint.run_id), "a run went to both pullers");
            node.ack(delivery.token).await;
        }
    }
    assert_eq!(got, sent);
}

async fn queues_are_separate(harness: &dyn Harness) {
    let node = harness.node().await;
    let unique = id();
    let key = |namespace: &str, queue: &str| {
        let namespace = format!("{namespace}-{unique}");
        HintQueue::runs(QueueKey { namespace, task_queue: queue.to_owned() })
    };
    let steps = HintQueue::steps(key("a", "q").queue);
    separate(&*node, &[key("a", "q"), key("b", "q"), key("a", "r"), key("a", "Q"), steps]).await;
}

async fn odd_names_are_separate(harness: &dyn Harness) {
    let node = harness.node().await;
    let unique = id();
    let long = "x".repeat(255);
    let names = [
        "a",
        "a.b",
        "a.b.c",
        "*",
        ">",
        "a.*",
        "a.>",
        ".",
        "a b",
        " ",
        "a/b",
        "a\\b",
        "a%2Eb",
        "%",
        "%2E",
        "a_b",
        "a-b",
        "$JS.API.>",
        "ä",
        "任务",
        "\t",
        "\r\n",
        "\0",
        "",
        &long,
    ];
    let mut keys: Vec<QueueKey> = names
        .iter()
        .map(|name| QueueKey { namespace: format!("odd-{unique}"), task_queue: (*name).to_owned() })
        .collect();
    // What is the namespace's and what the queue's must not run together either.
    keys.extend(
        names
            .iter()
            .map(|name| QueueKey { namespace: format!("odd-{unique}.{name}"), task_queue: "a".to_owned() }),
    );
    let keys: Vec<HintQueue> =
        keys.into_iter().flat_map(|key| [HintQueue::runs(key.clone()), HintQueue::steps(key)]).collect();
    separate(&*node, &keys).await;
}

/// One hint to each queue, all before the first pull: each queue holds exactly its own.
async fn separate(node: &dyn Dispatch, keys: &[HintQueue]) {
    let mut sent = Vec::new();
    for key in keys {
        sent.push([publish(node, key).await, publish(node, key).await]);
    }
    for (key, sent) in keys.iter().zip(sent) {
        let mut got = Vec::new();
        while got.len() < 2 {
            for delivery in pull(node, key, 10).await {
                node.ack(delivery.token).await;
                got.push(delivery.hint);
            }
        }
        assert_eq!(got, sent, "queue {key:?} holds its own hints and no others");
    }
}

async fn a_dropped_pull_loses_nothing(harness: &dyn Harness) {
    let (from, to) = (harness.node().await, harness.node().await);
    let queue = fresh_queue();
    assert!(poll_once(to.pull(&queue, 5)).is_pending());
    let first = publish(&*from, &queue).await;
    assert_eq!(pull(&*to, &queue, 5).await[0].hint, first);
    for _ in 0..20 {
        let sent = publish(&*from, &queue).await;
        let mut taken = match poll_once(to.pull(&queue, 5)) {
            Poll::Ready(taken) => taken.expect("pull works"),
            Poll::Pending => Vec::new(),
        };
        if taken.is_empty() {
            taken = pull(&*to, &queue, 5).await;
        }
        assert_eq!(taken[0].hint, sent);
        to.ack(taken[0].token).await;
    }
}

/// Pulls that are all dropped after one poll must not begin at zero each time.
async fn dropped_pulls_still_get_on(harness: &dyn Harness) {
    let (from, to) = (harness.node().await, harness.node().await);
    let queue = fresh_queue();
    for _ in 0..3 {
        let sent = publish(&*from, &queue).await;
        let taken = timeout(PATIENCE, async {
            loop {
                match poll_once(to.pull(&queue, 5)) {
                    Poll::Ready(taken) => return taken.expect("pull works"),
                    Poll::Pending => tokio::task::yield_now().await,
                }
            }
        });
        let Ok(taken) = taken.await else { panic!("pulls that are dropped never get a hint") };
        assert_eq!(taken[0].hint, sent);
        to.ack(taken[0].token).await;
    }
}

/// Pulls are dropped at many points of their work while hints stream in.
async fn concurrent_drops_lose_nothing(harness: &dyn Harness) {
    const COUNT: usize = 150;
    let (from, to) = (harness.node().await, harness.node().await);
    let queue = fresh_queue();
    let publisher = async {
        let mut sent = HashSet::new();
        for _ in 0..COUNT {
            sent.insert(publish(&*from, &queue).await.run_id);
        }
        sent
    };
    let puller = async {
        let mut got = HashSet::new();
        let mut patience_us = 0;
        while got.len() < COUNT {
            patience_us = (patience_us + 37) % 1_500;
            let limit = Duration::from_micros(patience_us);
            let Ok(taken) = timeout(limit, to.pull(&queue, 4)).await else { continue };
            for delivery in taken.expect("pull works") {
                got.insert(delivery.hint.run_id);
                to.ack(delivery.token).await;
            }
        }
        got
    };
    match timeout(PATIENCE, async { tokio::join!(publisher, puller) }).await {
        Ok((sent, got)) => assert_eq!(sent, got),
        Err(_) => panic!("a dropped pull took hints with it"),
    }
}

async fn duplicates_are_harmless(harness: &dyn Harness) {
    let node = harness.node().await;
    let queue = fresh_queue();
    let doubled = hint(&queue);
    for _ in 0..5 {
        node.publish(doubled.clone()).await.expect("publish works");
    }
    let last = publish(&*node, &queue).await;
    let mut copies = 0;
    loop {
        for delivery in pull(&*node, &queue, 2).await {
            node.ack(delivery.token).await;
            if delivery.hint == last {
                assert!((1..=5).contains(&copies), "published 5 times, delivered {copies} times");
                return;
            }
            assert_eq!(delivery.hint, doubled);
            copies += 1;
        }
    }
}

async fn unacknowledged_comes_again(harness: &dyn Harness) {
    if !harness.traits().redelivers {
        return;
    }
    let (from, to) = (harness.node().await, harness.node().await);
    let queue = fresh_queue();
    let mut sent = hint(&queue);
    sent.trace.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned();
    from.publish(sent.clone()).await.expect("publish works");
    let first = pull(&*to, &queue, 5).await;
    assert_eq!(first[0].attempt, 1);
    let again = pull(&*to, &queue, 5).await;
    assert_eq!(again[0].hint, sent, "a repeated hint is whole, with its trace context");
    assert!(again[0].attempt > 1, "a repeated hint says so");
    to.ack(again[0].token).await;
}

fn notice(node: NodeId) -> Notice {
    Notice { run_id: RunId::from_uuid(id()), tail: 7, closed: true, node, asked: false }
}

/// Waits until `expected` is heard, whatever else passes by.
async fn hear(dispatch: &dyn Dispatch, expected: Notice) {
    let heard = timeout(PATIENCE, async {
        while !dispatch.notices().await.expect("notices work").contains(&expected) {}
    });
    assert!(heard.await.is_ok(), "{expected:?} never came");
}

async fn notices_reach_the_others(harness: &dyn Harness) {
    let (a, b) = (harness.node().await, harness.node().await);
    if !harness.traits().shared {
        a.notify(notice(NodeId::from_uuid(id()))).await;
        assert!(poll_once(a.notices()).is_pending(), "a single node hears nothing");
        return;
    }
    let (id_a, id_b) = (NodeId::from_uuid(id()), NodeId::from_uuid(id()));
    let (from_a, from_b) = (notice(id_a), Notice { closed: false, ..notice(id_b) });
    a.notify(from_a).await;
    hear(&*b, from_a).await;
    b.notify(from_b).await;
    hear(&*a, from_b).await;
    // Many at once may be merged per run, but each run's last word arrives, and what one of them said of a question.
    let last = Notice { tail: 1_000, asked: true, ..from_a };
    for tail in 1..=1_000 {
        a.notify(Notice { tail, asked: tail == 1_000, ..from_a }).await;
    }
    hear(&*b, last).await;
}

async fn notices_survive_dropped_waits(harness: &dyn Harness) {
    if !harness.traits().shared {
        return;
    }
    let (a, b) = (harness.node().await, harness.node().await);
    let sender = NodeId::from_uuid(id());
    for _ in 0..20 {
        // Others' notices may pass by on a shared server; this wait only matters for being dropped.
        let _ = poll_once(b.notices());
        let sent = notice(sender);
        a.notify(sent).await;
        hear(&*b, sent).await;
    }
}
