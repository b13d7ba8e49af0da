//! Which runs of this deployment are checked: open ones first, the newest first, spread over the types of workflows.

use everstep_core::{RunId, RunRow, RunStatus};
use everstep_store::{PageToken, RunFilter};
use tonic::Status;

use super::check::Checking;
use crate::status;

/// Open runs looked at for types that the build lacks.
const LACKING_MAX: usize = 100;

/// A type of workflow, and how far its runs were looked at.
struct Source {
    workflow_type: String,
    after: Option<PageToken>,
}

/// The runs to check, and open runs that the build has no code for although it serves their queue.
pub(super) async fn runs(checking: &Checking) -> Result<(Vec<RunId>, Vec<RunRow>), Status> {
    let (plan, candidate) = (&checking.plan, &checking.candidate);
    let mut chosen = Vec::new();
    if plan.sample == 0 {
        return Ok((chosen, Vec::new()));
    }
    let (closed, open): (Vec<RunStatus>, Vec<RunStatus>) =
        RunStatus::ALL.into_iter().partition(|status| status.is_closed());
    let wanted = |name: &&String| plan.workflow_types.is_empty() || plan.workflow_types.contains(*name);
    let types: Vec<String> = candidate.workflow_types.iter().filter(wanted).cloned().collect();
    take(checking, &types, &open, &mut chosen).await?;
    if !plan.open_only {
        take(checking, &types, &closed, &mut chosen).await?;
    }
    let filter = filter(checking, None, &open);
    let rows = checking.engine.store().list_runs(&filter, None, LACKING_MAX).await;
    let mut lacking = rows.map_err(|e| status::of_store(&e))?;
    lacking.retain(|row| {
        !candidate.workflow_types.contains(&row.workflow_type)
            && candidate.task_queues.contains(&row.task_queue)
            && wanted(&&row.workflow_type)
    });
    Ok((chosen, lacking))
}

/// Adds runs until there are enough, in rounds: every type gives its share of what is still missing.
async fn take(
    checking: &Checking,
    types: &[String],
    statuses: &[RunStatus],
    chosen: &mut Vec<RunId>,
) -> Result<(), Status> {
    let source = |name: &String| Source { workflow_type: name.clone(), after: None };
    let mut sources: Vec<Source> = types.iter().map(source).collect();
    while chosen.len() < checking.plan.sample && !sources.is_empty() {
        let share = (checking.plan.sample - chosen.len()).div_ceil(sources.len());
        let mut going_on = Vec::with_capacity(sources.len());
        for mut source in sources {
            let filter = filter(checking, Some(&source.workflow_type), statuses);
            let rows = checking.engine.store().list_runs(&filter, source.after, share).await;
            let rows = rows.map_err(|e| status::of_store(&e))?;
            let more = rows.len() == share;
            source.after = rows.last().map(|row| PageToken(row.run_id));
            let queues = &checking.candidate.task_queues;
            let room = checking.plan.sample - chosen.len();
            let here = rows.into_iter().filter(|row| queues.contains(&row.task_queue));
            chosen.extend(here.map(|row| row.run_id).take(room));
            if more {
                going_on.push(source);
            }
        }
        sources = going_on;
    }
    Ok(())
}

fn filter(checking: &Checking, workflow_type: Option<&str>, statuses: &[RunStatus]) -> RunFilter {
    RunFilter {
        namespace: checking.plan.namespace.clone(),
        workflow_type: workflow_type.map(str::to_owned),
        statuses: statuses.to_vec(),
        ..RunFilter::default()
    }
}
