//! The stores that every integration test runs on.

use std::sync::Arc;

use everstep_store::Store;
use everstep_tests::cluster::memory_store;

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
    let sqlite = everstep_store_sqlite::SqliteStore::open(&folder.path().join("everstep.db")).await?;
    let sqlite = TestStore { name: "sqlite", store: Arc::new(sqlite), _folder: Some(folder) };
    Ok(vec![memory, sqlite])
}
