//! What is filled in is what the real append would have left.

use everstep_core::RunStatus;
use everstep_store::{PageToken, RunFilter};
use everstep_store_sqlite::SqliteStore;

use super::*;

/// Every run of the store, with its tables checked against its events.
async fn statuses(store: &Arc<dyn Store>) -> anyhow::Result<Vec<(RunStatus, usize, bool)>> {
    let filter = RunFilter { namespace: "default".to_owned(), ..RunFilter::default() };
    let (mut found, mut page) = (Vec::new(), None);
    loop {
        let rows = store.list_runs(&filter, page, 500).await?;
        let Some(last) = rows.last() else { return Ok(found) };
        page = Some(PageToken(last.run_id));
        for row in rows {
            let events = store.read_events(row.run_id, 0, 1_000).await?;
            let folded = Run::fold(row.run_id, &events)?.map(|run| run.projection());
            let tables = store.run_tables(row.run_id).await?.map(|tables| tables.projection);
            assert_eq!(folded, tables);
            let start = store.find_start(&row.namespace, &row.workflow_id, "none").await?;
            assert_eq!(start.current, Some((row.run_id, row.status)));
            found.push((row.status, events.len(), tables.is_some_and(|t| t.task.is_some())));
        }
    }
}

async fn filled(shape: Shape, runs: u64) -> anyhow::Result<Vec<(RunStatus, usize, bool)>> {
    let folder = tempfile::tempdir()?;
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&folder.path().join("filled.db")).await?);
    let sample = fill(&store, shape, runs).await.map_err(|fail| anyhow::anyhow!("{fail}"))?;
    assert_eq!(sample.len() as u64, runs, "every run of so few is in the sample");
    let found = statuses(&store).await?;
    store.close().await;
    assert_eq!(found.len() as u64, runs);
    Ok(found)
}

#[tokio::test]
async fn closed_runs_have_25_events_and_some_have_failed() -> anyhow::Result<()> {
    let found = filled(Shape::Closed, 250).await?;
    assert!(found.iter().all(|(_, events, task)| *events as u64 == EVENTS_OF_CLOSED && !task));
    let failed = found.iter().filter(|(status, ..)| *status == RunStatus::Failed).count();
    assert_eq!(failed as u64, 250 / ONE_FAILED_IN);
    Ok(())
}

#[tokio::test]
async fn open_runs_are_as_their_shape_says() -> anyhow::Result<()> {
    for (shape, task) in [(Shape::Sleeping, false), (Shape::Waiting, true), (Shape::Lost, false)] {
        let found = filled(shape, 40).await?;
        let expected = (RunStatus::Running, usize::try_from(shape.events())?, task);
        assert!(found.iter().all(|run| *run == expected), "{shape:?}: {found:?}");
    }
    Ok(())
}
