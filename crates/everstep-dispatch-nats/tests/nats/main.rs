//! The adapter against a real server: the port's promises, and what happens when NATS loses everything.

mod faults;
mod refusals;
mod server;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Waker};
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use everstep_core::{NodeId, QueueKey, RunId};
use everstep_dispatch::conformance::{Harness, Traits, suite};
use everstep_dispatch::{Delivery, Dispatch, Error, HintQueue, Notice, TaskHint};
use everstep_dispatch_nats::{NatsDispatch, NatsOptions};
use server::Server;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

fn queue(name: &str) -> HintQueue {
    HintQueue::runs(QueueKey { namespace: "default".to_owned(), task_queue: name.to_owned() })
}

fn hint(queue: &HintQueue) -> TaskHint {
    TaskHint::new(RunId::from_uuid(Uuid::new_v4()), queue.clone())
}

async fn connect(server: &Server) -> Result<Arc<NatsDispatch>> {
    Ok(Arc::new(NatsDispatch::connect(&server.url(), NatsOptions::default()).await?))
}

/// Polls `future` once: a pull then has its request on the way.
fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
    future.poll(&mut TaskContext::from_waker(Waker::noop())).is_ready()
}

/// Pulls as the engine does: an unavailable dispatch is asked again.
async fn pull_until(node: &dyn Dispatch, queue: &HintQueue) -> Result<Vec<Delivery>> {
    let pulling = async {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            match node.pull(queue, 10).await {
                Err(Error::Unavailable(_)) => pause.tick().await,
                other => return other,
            };
        }
    };
    Ok(tokio::time::timeout(PATIENCE, pulling).await.context("no hint came")??)
}

/// Publishes as the sweep does: again, until it works.
async fn publish_until(node: &dyn Dispatch, hint: &TaskHint) -> Result<()> {
    let publishing = async {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            match node.publish(hint.clone()).await {
                Err(Error::Unavailable(_)) => pause.tick().await,
                other => return other,
            };
        }
    };
    Ok(tokio::time::timeout(PATIENCE, publishing).await.context("publishing never worked again")??)
}

struct OnNats(Server);

#[async_trait]
impl Harness for OnNats {
    fn traits(&self) -> Traits {
        Traits { redelivers: true, shared: true }
    }

    async fn node(&self) -> Arc<dyn Dispatch> {
        let options = NatsOptions { ack_wait: Duration::from_secs(4), ..NatsOptions::default() };
        match NatsDispatch::connect(&self.0.url(), options).await {
            Ok(node) => Arc::new(node),
            Err(error) => panic!("cannot connect: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passes_the_conformance_suite() -> Result<()> {
    let Some(server) = Server::start()? else { return Ok(()) };
    suite(&OnNats(server)).await;
    Ok(())
}

/// A hint that a dropped pull had asked for reaches another node long before its redelivery is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_pulling_gives_hints_back() -> Result<()> {
    let Some(server) = Server::start()? else { return Ok(()) };
    let options = NatsOptions { ack_wait: Duration::from_secs(120), ..NatsOptions::default() };
    let stops = Arc::new(NatsDispatch::connect(&server.url(), options.clone()).await?);
    let pulls = Arc::new(NatsDispatch::connect(&server.url(), options).await?);
    let key = queue("q");
    {
        // Let it get as far as a waiting request at the server.
        let mut waiting = pin!(stops.pull(&key, 10));
        let served = tokio::time::timeout(Duration::from_millis(300), waiting.as_mut()).await;
        assert!(served.is_err(), "there is nothing to pull yet");
    }
    let sent = hint(&key);
    pulls.publish(sent.clone()).await?;
    let taken = pull_until(&*pulls, &key).await?;
    assert_eq!(taken[0].hint, sent);
    Ok(())
}

/// What is not acknowledged at all is tried a few times and then left to the sweep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_of_one_hint_are_limited() -> Result<()> {
    let Some(server) = Server::start()? else { return Ok(()) };
    let options =
        NatsOptions { ack_wait: Duration::from_millis(500), deliveries_max: 3, ..NatsOptions::default() };
    let node = NatsDispatch::connect(&server.url(), options).await?;
    let key = queue("q");
    let poison = hint(&key);
    node.publish(poison.clone()).await?;
    for attempt in 1..=3 {
        let taken = pull_until(&node, &key).await?;
        assert_eq!((&taken[0].hint, taken[0].attempt), (&poison, attempt));
    }
    let good = hint(&key);
    node.publish(good.clone()).await?;
    assert_eq!(pull_until(&node, &key).await?[0].hint, good);
    Ok(())
}

/// Deployments with different prefixes share a server without hearing each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_can_share_a_server() -> Result<()> {
    let Some(server) = Server::start()? else { return Ok(()) };
    let options = |name: &str| NatsOptions {
        stream: format!("TASKS_{name}"),
        subject_prefix: format!("team.{name}"),
        ..NatsOptions::default()
    };
    let one = NatsDispatch::connect(&server.url(), options("one")).await?;
    let two = NatsDispatch::connect(&server.url(), options("two")).await?;
    let two_again = NatsDispatch::connect(&server.url(), options("two")).await?;
    let key = queue("q");
    let (for_one, for_two) = (hint(&key), hint(&key));
    one.publish(for_one.clone()).await?;
    two.publish(for_two.clone()).await?;
    assert_eq!(pull_until(&two, &key).await?[0].hint, for_two);
    assert_eq!(pull_until(&one, &key).await?[0].hint, for_one);

    let notice = |tail| Notice {
        run_id: for_one.run_id,
        tail,
        closed: false,
        node: NodeId::from_uuid(Uuid::new_v4()),
        asked: false,
    };
    let (from_one, from_two) = (notice(1), notice(2));
    one.notify(from_one).await;
    two_again.notify(from_two).await;
    let heard = tokio::time::timeout(PATIENCE, two.notices()).await??;
    assert_eq!(heard, [from_two]);
    Ok(())
}
