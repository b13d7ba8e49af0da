//! An order whose worker is lost in the middle of a charge, and in the middle of an undo.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use everstep::{Ctx, RunError, StepError, WorkerBuilder};
use everstep_core::RunStatus;
use everstep_dispatch::InProcess;
use everstep_example_patterns::order::{Order, Receipt, Shop, WORKFLOW, carry_out};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use tokio::sync::mpsc;

use crate::stores;

/// What is really there, and what was asked for.
#[derive(Default)]
struct Books {
    charges: BTreeMap<String, u64>,
    held: u32,
    parcels: u32,
    calls: Vec<&'static str>,
}

struct World {
    books: Mutex<Books>,
    heard: mpsc::UnboundedSender<&'static str>,
    /// The call that does what it is to do and never answers, the first time.
    deadly: &'static str,
    /// Nothing can be shipped.
    no_room: bool,
}

impl World {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn done<T>(&self, call: &'static str, value: T) -> Result<T, StepError> {
        let first = {
            let mut books = self.books();
            books.calls.push(call);
            books.calls.iter().filter(|&&name| name == call).count() == 1
        };
        let _ = self.heard.send(call);
        if first && call == self.deadly {
            std::future::pending::<()>().await;
        }
        Ok(value)
    }

    fn count(&self, call: &str) -> usize {
        self.books().calls.iter().filter(|&&name| name == call).count()
    }
}

impl Shop for World {
    async fn charge(self: Arc<Self>, key: String, cents: u64) -> Result<String, StepError> {
        self.books().charges.insert(key.clone(), cents);
        self.done("charge", key).await
    }

    async fn find_charge(self: Arc<Self>, key: String) -> Result<Option<String>, StepError> {
        let found = self.books().charges.contains_key(&key);
        self.done("find_charge", found.then_some(key)).await
    }

    async fn refund(self: Arc<Self>, key: String) -> Result<(), StepError> {
        self.books().charges.remove(&key);
        self.done("refund", ()).await
    }

    async fn reserve(self: Arc<Self>, _: Order) -> Result<(), StepError> {
        self.books().held += 1;
        self.done("reserve", ()).await
    }

    async fn release(self: Arc<Self>, _: Order) -> Result<(), StepError> {
        self.books().held = 0;
        self.done("release", ()).await
    }

    async fn ship(self: Arc<Self>, order: Order) -> Result<String, StepError> {
        if self.no_room {
            return Err(StepError::new("NoRoom", "the ship is full").non_retryable());
        }
        self.books().parcels += 1;
        self.done("ship", format!("parcel of {}", order.id)).await
    }

    async fn recall(self: Arc<Self>, _: Order) -> Result<(), StepError> {
        self.books().parcels = 0;
        self.done("recall", ()).await
    }
}

fn hosting(node: &RunningNode, world: &Arc<World>) -> WorkerBuilder {
    let world = Arc::clone(world);
    node.worker().register(WORKFLOW, move |ctx: Ctx, order| carry_out(ctx, Arc::clone(&world), order))
}

/// Loses the worker in the middle of the deadly call; another one goes on.
async fn played(
    store: &stores::TestStore,
    deadly: &'static str,
    no_room: bool,
) -> anyhow::Result<(Result<Receipt, RunError>, Arc<World>)> {
    let hints = Arc::new(InProcess::new());
    let node = RunningNode::start(Arc::clone(&store.store), hints, NodeSettings::default()).await?;
    let (heard, mut calls) = mpsc::unbounded_channel();
    let world = Arc::new(World { books: Mutex::default(), heard, deadly, no_room });
    let worker = RunningWorker::start(hosting(&node, &world))?;
    let order = Order { id: "7".to_owned(), item: "book".to_owned(), cents: 1_000 };
    let run = node.client()?.workflow::<Receipt>(WORKFLOW).start(&order).await?;
    while calls.recv().await.is_some_and(|call| call != deadly) {}
    drop(worker);
    let _next = RunningWorker::start(hosting(&node, &world))?;
    let ended = run.result().await;
    node.shutdown().await?;
    Ok((ended, world))
}

#[tokio::test]
async fn the_bank_is_asked_for_a_charge_whose_worker_was_lost() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let (ended, world) = played(&store, "charge", false).await?;
        assert_eq!(ended?.parcel, "parcel of 7", "on {}", store.name);
        assert_eq!(["charge", "find_charge", "refund"].map(|call| world.count(call)), [1, 1, 0]);
        let books = world.books();
        assert_eq!((books.charges.len(), books.held, books.parcels), (1, 1, 1));
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_of_an_order_that_cannot_be_shipped() -> anyhow::Result<()> {
    for store in stores::all().await? {
        for deadly in ["reserve", "release", "refund"] {
            let (ended, world) = played(&store, deadly, true).await?;
            let Err(RunError::Ended { status, failure }) = ended else { anyhow::bail!("it was shipped") };
            let kind = if deadly == "reserve" { "InDoubt" } else { "NoRoom" };
            let place = format!("lost in {deadly} on {}", store.name);
            assert_eq!((status, failure.kind.as_str()), (RunStatus::Failed, kind), "{place}");
            let books = world.books();
            assert_eq!((books.charges.len(), books.held, books.parcels), (0, 0, 0), "{place}");
        }
    }
    Ok(())
}
