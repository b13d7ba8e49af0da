//! Nodes of integration tests: one over a store, or two on one Postgres with a NATS between them that may die.

use std::sync::Arc;

use everstep::RunHandle;
use everstep_core::EventBody;
use everstep_dispatch::{Dispatch, InProcess};
use everstep_dispatch_nats::{NatsDispatch, NatsOptions};
use everstep_store_postgres::{PostgresStore, migrate};
use everstep_tests::cluster::{NodeSettings, RunningNode};
use everstep_tests::servers::{NatsServer, PostgresServer, require};

use crate::stores;

/// The only node of a store.
pub(crate) async fn node_on(store: &stores::TestStore) -> anyhow::Result<RunningNode> {
    eprintln!("on {}", store.name);
    RunningNode::start(Arc::clone(&store.store), Arc::new(InProcess::new()), NodeSettings::default()).await
}

/// One of the nodes of a Postgres database.
pub(crate) async fn node_at(database: &str, dispatch: Arc<dyn Dispatch>) -> anyhow::Result<RunningNode> {
    let store = PostgresStore::connect(database, stores::postgres_options()).await?;
    RunningNode::start(Arc::new(store), dispatch, NodeSettings::default()).await
}

/// Two nodes of one database, and the NATS between them.
pub(crate) struct Pair {
    pub(crate) here: RunningNode,
    pub(crate) there: RunningNode,
    pub(crate) nats: NatsServer,
}

/// `None` where these servers are not to be had, and need not be.
pub(crate) async fn pair() -> anyhow::Result<Option<Pair>> {
    if !require("pg")? || !require("nats")? {
        return Ok(None);
    }
    let database = PostgresServer::shared()?.create_database().await?;
    migrate(&database).await?;
    let nats = NatsServer::start()?;
    let node = async || {
        let dispatch = NatsDispatch::connect(&nats.url(), NatsOptions::default()).await?;
        node_at(&database, Arc::new(dispatch)).await
    };
    let (here, there) = (node().await?, node().await?);
    Ok(Some(Pair { here, there, nats }))
}

/// Follows a run's history up to an event.
pub(crate) async fn until(run: &RunHandle<u32>, wanted: impl Fn(&EventBody) -> bool) -> anyhow::Result<()> {
    let mut history = run.history(0, true).await?;
    while let Some(event) = history.next().await? {
        if wanted(&event.body) {
            return Ok(());
        }
    }
    anyhow::bail!("the run has ended before")
}
