//! The stores that every integration test runs on.

use std::sync::Arc;

use everstep_store::Store;
use everstep_store_postgres::{PostgresOptions, PostgresStore, migrate};
use everstep_store_sqlite::SqliteStore;
use everstep_tests::cluster::memory_store;
use everstep_tests::servers::{PostgresServer, require};

/// A store with what it needs to live.
pub(crate) struct TestStore {
    pub(crate) name: &'static str,
    pub(crate) store: Arc<dyn Store>,
    _folder: Option<tempfile::TempDir>,
}

/// One of each.
pub(crate) async fn all() -> anyhow::Result<Vec<TestStore>> {
    let memory = TestStore { name: "memory", store: memory_store(), _folder: None };
    let folder = tempfile::tempdir()?;
    let sqlite = SqliteStore::open(&folder.path().join("everstep.db")).await?;
    let sqlite = TestStore { name: "sqlite", store: Arc::new(sqlite), _folder: Some(folder) };
    let mut all = vec![memory, sqlite];
    if require("pg")? {
        let url = PostgresServer::shared()?.create_database().await?;
        migrate(&url).await?;
        let postgres = PostgresStore::connect(&url, postgres_options()).await?;
        all.push(TestStore { name: "postgres", store: Arc::new(postgres), _folder: None });
    }
    Ok(all)
}

/// The test servers do not sync to disk: a killed process loses nothing by that.
pub(crate) fn postgres_options() -> PostgresOptions {
    PostgresOptions { allow_fsync_off: true, appenders: 2, others: 3, ..PostgresOptions::default() }
}
