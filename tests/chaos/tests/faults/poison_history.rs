//! F32: histories that no version of Everstep wrote, put there by SQL.

use anyhow::Context as _;
use everstep::Client;
use everstep_chaos::case::{Case, Options};
use everstep_chaos::topology::StoreKind;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::support::{LONG, drop_case, has_servers, layout, passes};

/// What a second event is made to be: kind, attrs, encoding and payload, as SQL.
const POISONS: [(&str, &str); 4] = [
    ("unknown kind", "'NoSuchEvent', '{}', NULL, NULL"),
    ("broken attrs", "'StepCompleted', '{', 'json', 'x'::bytea"),
    ("no text", "'SignalReceived', '{\"signal_id\": 7}', 'json', '\\xff'::bytea"),
    ("missing columns", "'TimerFired', NULL, NULL, NULL"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_cannot_be_read_harms_no_other_run() -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    let mut layout = layout("f32", 132, StoreKind::Postgres);
    // The poisoned runs are in a namespace of their own, which the export for the checker leaves out.
    layout.namespace_of_export = Some("default".to_owned());
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    let pids: Vec<_> = case.topology().nodes.iter().map(|node| node.process.pid()).collect();
    let address = case.topology().addresses().first().cloned().context("an address")?;
    let client = Client::connect(&address)?.namespace("poison");
    client.create_namespace("poison", "").await?;
    let mut connection = PgConnection::connect(&case.topology().source.url).await?;
    for (name, columns) in POISONS {
        let run = client.workflow::<()>("nobody").workflow_id(name.replace(' ', "-")).start(&()).await?;
        let id = run.run_id().context("a run id")?;
        let insert = format!(
            "INSERT INTO events (run_id, seq, at, epoch, command_id, actor, kind, attrs, encoding, payload) \
             VALUES ('{id}', 2, clock_timestamp(), 0, gen_random_uuid(), 'system', {columns})"
        );
        sqlx::query(AssertSqlSafe(insert)).execute(&mut connection).await?;
        let refused = run.signal("go", &1).await.err().with_context(|| format!("{name} was signaled"))?;
        assert_eq!(refused.reason(), Some("STORE_CORRUPT"), "{name}: {refused}");
        case.count("poison_history", true);
        case.wait_moved(10, LONG).await?;
    }
    connection.close().await?;
    let after: Vec<_> = case.topology().nodes.iter().map(|node| node.process.pid()).collect();
    assert_eq!(after, pids, "a server ended");
    passes(case).await?;
    drop_case(&folder)
}
