//! The crash demo, which checks itself: exit 0 means that every effect is accounted for.

use everstep_tests::servers::{NatsServer, PostgresServer, require};

use crate::support::{everstep, folder, run};

#[tokio::test(flavor = "multi_thread")]
async fn every_effect_is_accounted_for_on_sqlite() -> anyhow::Result<()> {
    let folder = folder()?;
    let done = run(folder.path(), &["demo", "crash"]).await?;
    assert_eq!(done.code, Some(0), "{}\n{}", done.stdout, done.stderr);
    assert!(done.stdout.contains("PASS") && done.stdout.contains("*re-executed*"), "{}", done.stdout);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_effect_is_accounted_for_on_postgres_with_nats() -> anyhow::Result<()> {
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    let database = PostgresServer::shared()?.create_database().await?;
    everstep_store_postgres::migrate(&database).await?;
    let (nats, folder) = (NatsServer::start()?, folder()?);
    let mut command = everstep(folder.path(), &["demo", "crash", "--allow-fsync-off"]);
    let done = command.args(["--database-url", &database, "--nats-url", &nats.url()]).output().await?;
    let stdout = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&done.stderr));
    assert!(stdout.contains("PASS") && stdout.contains("*re-executed*"), "{stdout}");
    Ok(())
}
