//! F12: callers go away in the middle of what they asked for.

use std::time::Duration;

use anyhow::ensure;
use everstep_faultproxy::{Direction, Fault, Rule};
use everstep_proto::api::run_service_client::RunServiceClient;
use everstep_proto::api::{self, RunRef};
use everstep_tests::servers::{PostgresServer, require};
use futures::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::world::{Plan, World, struck, within};

const CALLS: u32 = 2_000;
const AT_ONCE: usize = 50;
/// A server breaks a connection off on which many calls are reset before it has looked at them.
const CONNECTIONS_OF_CALLERS: usize = 10;
/// What a node of these tests keeps: appenders, others, and those for leases and the sweep.
const CONNECTIONS_MAX: i64 = 7;
const LOG_LINES_MAX: usize = 200;
const IN_TRANSACTION: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'everstep' \
                              AND state LIKE 'idle in transaction%'";
const CONNECTIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'everstep'";

/// One call of one of four kinds, with a deadline of 0 to 20 ms. Tells whether it was cut short.
async fn call(channel: Channel, number: u32, open: RunRef) -> anyhow::Result<bool> {
    fn with_deadline<T>(message: T, number: u32) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(Duration::from_millis(u64::from(number / 4 % 21)));
        request
    }
    let mut runs = RunServiceClient::new(channel);
    let (namespace, request_id) = ("default".to_owned(), format!("call-{number}"));
    let status = match number % 4 {
        0 => {
            let start = api::StartRunRequest {
                namespace,
                workflow_type: "quick".to_owned(),
                workflow_id: request_id.clone(),
                request_id,
                ..api::StartRunRequest::default()
            };
            runs.start_run(with_deadline(start, number)).await.err()
        }
        1 => {
            let signal = api::SignalRunRequest {
                run: Some(open),
                name: "noise".to_owned(),
                request_id,
                ..api::SignalRunRequest::default()
            };
            runs.signal_run(with_deadline(signal, number)).await.err()
        }
        2 => runs.get_run(with_deadline(api::GetRunRequest { run: Some(open) }, number)).await.err(),
        _ => {
            let list = api::ListRunsRequest { namespace, ..api::ListRunsRequest::default() };
            runs.list_runs(with_deadline(list, number)).await.err()
        }
    };
    let Some(status) = status else { return Ok(false) };
    // A broken connection cuts short as well. It has a source; what a server says has none.
    let broken = std::error::Error::source(&status).is_some();
    let cut_short = broken || matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled);
    ensure!(cut_short, "call {number}: {status}");
    Ok(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_cut_short_leave_the_pool_healthy() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    within("2,000 calls that are cut short", async {
        let server = PostgresServer::start()?;
        let world = World::on(&server.create_database().await?, Plan::default()).await?;
        let client = world.client()?;
        let _worker = world.worker(0)?;
        // Held at its second step: it takes the signals.
        let runs = world.start(&client, 0..1).await?;
        world.slept(1).await?;
        let id = runs[0].run_id().map(|id| id.to_string()).unwrap_or_default();
        let open = RunRef { namespace: "default".to_owned(), run_id: id, workflow_id: String::new() };
        let link = world.site().postgres.handle();
        link.add(Rule::from(Fault::Delay { ms: 10, jitter_ms: 0 }).direction(Direction::Up))?;
        let endpoint = Channel::from_shared(world.site().node.address.clone())?;
        let channels: Vec<_> = (0..CONNECTIONS_OF_CALLERS).map(|_| endpoint.connect_lazy()).collect();
        let calls = (0..CALLS).zip(channels.iter().cycle());
        let calls = calls.map(|(number, channel)| call(channel.clone(), number, open.clone()));
        let ended: Vec<_> = futures::stream::iter(calls).buffer_unordered(AT_ONCE).collect().await;
        let cut_short = ended.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let cut_short = cut_short.into_iter().filter(|cut| *cut).count();
        ensure!(cut_short > 400, "only {cut_short} calls were cut short");
        struck(&link)?;
        link.heal();
        // Whatever was begun comes to its end: no run waits for a caller that is gone.
        world.open_gate();
        runs[0].terminate("enough").await?;
        world.truth.wait("SELECT (count(*) = 0)::int::bigint FROM runs WHERE closed_at IS NULL", 1).await?;
        world.truth.check_order().await?;
        for _ in 0..100 {
            client.list(&everstep::client::RunListFilter::default(), "").await?;
        }
        let stuck = world.truth.count(IN_TRANSACTION).await?;
        ensure!(stuck == 0, "{stuck} sessions idle in a transaction (INV-46)");
        let connections = world.truth.count(CONNECTIONS).await?;
        ensure!(connections <= CONNECTIONS_MAX, "{connections} connections (INV-46)");
        let log = server.log_tail();
        ensure!(log.lines().count() < LOG_LINES_MAX, "the log of Postgres is not whole:\n{log}");
        ensure!(!log.contains("current transaction is aborted"), "25P02 (INV-46):\n{log}");
        Ok(())
    })
    .await
}
