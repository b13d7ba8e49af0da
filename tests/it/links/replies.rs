//! F11: the server has done it, and whoever asked never hears so.

use std::time::Duration;

use everstep_faultproxy::{Fault, GrpcPoint, Rule, When};
use everstep_tests::servers::require;

use super::world::{Plan, World, struck, within};

const RUNS: u32 = 8;

fn cut(at: GrpcPoint, when: When) -> Rule {
    Rule::from(Fault::Grpc { at }).when(when).named(format!("{at:?} {when:?}"))
}

/// Each connection of the client breaks at its third answer: a request that was done is sent again.
async fn client(at: GrpcPoint) -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    within("answers lost on the way to a client", async {
        let world = World::new(Plan::default()).await?;
        let _worker = world.worker(0)?;
        world.open_gate();
        let client = world.site().client_through_proxy()?;
        let link = world.site().front.handle();
        link.add(cut(at, When::NthOfConnection(3)))?;
        let runs = world.start(&client, 0..RUNS).await?;
        world.signal(&runs).await?;
        world.finish(&runs).await?;
        struck(&link)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_no_headers() -> anyhow::Result<()> {
    client(GrpcPoint::Headers).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_headers_and_no_message() -> anyhow::Result<()> {
    client(GrpcPoint::Data).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_a_message_and_no_trailers() -> anyhow::Result<()> {
    client(GrpcPoint::Trailers).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_loses_its_connection_behind_the_answer() -> anyhow::Result<()> {
    client(GrpcPoint::End).await
}

/// The stream breaks before its headers, and before some of its messages: acknowledged commits among them.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_misses_what_the_server_sends() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    within("messages lost on the way to a worker", async {
        let world = World::new(Plan { lease: Duration::from_secs(3), ..Plan::default() }).await?;
        let link = world.site().front.handle();
        link.add(cut(GrpcPoint::Headers, When::Nth(2)))?;
        for nth in [1, 4, 8, 13] {
            link.add(cut(GrpcPoint::Data, When::Nth(nth)))?;
        }
        let _worker = world.worker_through_proxy(0)?;
        world.open_gate();
        let mut runs = Vec::new();
        // How many messages a run takes depends on how much of it comes together.
        for first in (0..).step_by(RUNS as usize) {
            let more = world.start(&world.client()?, first..first + RUNS).await?;
            world.signal(&more).await?;
            runs.extend(more);
            world.finish(&runs).await?;
            if struck(&link).is_ok() {
                break;
            }
        }
        struck(&link)
    })
    .await
}
