//! Runs that wait for code that nobody connected has.

use everstep_core::{RunRow, RunStatus};
use everstep_engine::Engine;
use everstep_store::{RunFilter, WaitingFilter};
use tonic::Status;

use crate::{reason, status};

/// Stands for every build, and for a run that belongs to none.
const ANY: &str = "*";

/// Adds to a filter that the runs wait for a build.
pub(super) async fn filter(engine: &Engine, filter: &mut RunFilter, build: String) -> Result<(), Status> {
    if build.is_empty() {
        return Ok(());
    }
    if filter.parent.is_some() || !filter.attributes.is_empty() {
        let problem = "cannot be given together with parent_run_id or attribute_filters";
        let violation = status::violation("waits_for_build", reason::INVALID_ARGUMENT, problem);
        return Err(status::of_violations(vec![violation]));
    }
    let census = engine.census().await.map_err(|e| status::of_engine(&e))?;
    let wanted = |task: &everstep_core::TaskRow| {
        task.queue.namespace == filter.namespace && (build == ANY || task.build_id == build)
    };
    let unserved = census.unserved().into_iter().map(|group| &group.task);
    let tasks = unserved.filter(|task| wanted(task)).cloned().collect();
    filter.waiting = Some(WaitingFilter { build, tasks });
    Ok(())
}

/// The build that a run waits for; empty when it does not wait for code.
pub(super) async fn build_of(engine: &Engine, row: &RunRow) -> Result<String, Status> {
    if row.status != RunStatus::Running || row.owner.is_some() {
        return Ok(String::new());
    }
    let task = engine.store().task_of(row.run_id).await.map_err(|e| status::of_store(&e))?;
    let Some(task) = task else { return Ok(String::new()) };
    let census = engine.census().await.map_err(|e| status::of_engine(&e))?;
    let waits = census.unserved().iter().any(|group| group.task == task);
    Ok(match (waits, task.build_id.is_empty()) {
        (false, _) => String::new(),
        (true, true) => ANY.to_owned(),
        (true, false) => task.build_id,
    })
}
