//! F16: others have taken all connections of Postgres.

use anyhow::{bail, ensure};
use everstep_faultproxy::Fault;
use everstep_tests::servers::{PostgresOptions, PostgresServer, require};
use sqlx::{Connection as _, PgConnection};

use super::world::{LIMIT, Plan, World, within};
use crate::operator::{ready, unready};

const RUNS: u32 = 4;
const REFUSAL: &str = "too many clients already";

/// Takes connections until there is none.
async fn take_all(url: &str) -> anyhow::Result<Vec<PgConnection>> {
    let mut taken = Vec::new();
    loop {
        match PgConnection::connect(url).await {
            Ok(connection) => taken.push(connection),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("53300") => {
                return Ok(taken);
            }
            Err(error) => bail!("{error} after {} connections", taken.len()),
        }
    }
}

fn refusals(server: &PostgresServer) -> usize {
    server.log_tail().matches(REFUSAL).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_connections_refuses_and_recovers() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    within("no connections left", async {
        let options = PostgresOptions { connections_max: 16, ..PostgresOptions::default() };
        let server = PostgresServer::start_with(options)?;
        let url = server.create_database().await?;
        let world = World::on(&url, Plan::default()).await?;
        let _worker = world.worker(0)?;
        let client = world.client()?;
        let runs = world.start(&client, 0..RUNS).await?;
        world.slept(RUNS).await?;
        // The node loses its connections, and before it can make new ones, all are taken.
        let link = world.site().postgres.handle();
        link.add(Fault::Refuse)?;
        link.reset();
        let taken = take_all(&url).await?;
        let before = refusals(&server);
        link.heal();
        let refused = client.workflow::<u32>("errand").workflow_id("one too many").start(&0).await.err();
        let reason = refused.as_ref().and_then(|error| error.reason());
        ensure!(reason == Some("STORE_EXHAUSTED"), "a start was answered {refused:?}");
        ensure!(refusals(&server) > before, "Postgres refused nothing");
        let said = unready(&world.site().node, LIMIT).await?;
        ensure!(said.contains("the store is out of room"), "{said}");
        drop(taken);
        ready(&world.site().node).await?;
        world.open_gate();
        world.signal(&runs).await?;
        world.finish(&runs).await
    })
    .await
}
