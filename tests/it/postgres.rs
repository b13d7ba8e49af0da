//! The Postgres adapter against a real server.

use std::sync::Arc;

use everstep_store::conformance::{Subject, differential, run_all};
use everstep_store::{Catalog, Error, Store};
use everstep_store_postgres::{PostgresOptions, PostgresStore, migrate};
use everstep_tests::servers::{PostgresServer, require};

use crate::stores::postgres_options;

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_a_store_like_any_other() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let url = PostgresServer::shared()?.create_database().await?;
    migrate(&url).await?;
    let store: Arc<dyn Store> = Arc::new(PostgresStore::connect(&url, postgres_options()).await?);
    run_all(|| async { Subject::new(Arc::clone(&store)) }).await;
    for seed in 0..10 {
        let memory = everstep_tests::cluster::memory_store();
        differential(&*memory, &*store, seed).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_database_without_its_schema_and_a_lax_server_are_refused() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let url = PostgresServer::shared()?.create_database().await?;
    match PostgresStore::connect(&url, postgres_options()).await {
        Err(Error::Schema(text)) => assert!(text.contains("everstep migrate"), "{text}"),
        other => panic!("{other:?}"),
    }
    migrate(&url).await?;
    assert_eq!(migrate(&url).await?.applied, 0, "a second time changes nothing");
    match PostgresStore::connect(&url, PostgresOptions::default()).await {
        Err(Error::Refused(text)) => assert!(text.contains("fsync"), "{text}"),
        other => panic!("{other:?}"),
    }
    let store = PostgresStore::connect(&url, postgres_options()).await?;
    assert!(store.get_namespace("default").await?.is_some());
    match PostgresStore::connect("postgres://u:secret@127.0.0.1:1/x", postgres_options()).await {
        Err(error @ Error::Unavailable(_)) => assert!(!error.to_string().contains("secret"), "{error}"),
        other => panic!("{other:?}"),
    }
    Ok(())
}
