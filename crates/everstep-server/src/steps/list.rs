//! Lists of steps that wait for somebody: queued, running elsewhere, or in doubt.

use everstep_core::{DoubtPolicy, OpId, RunId};
use everstep_engine::Engine;
use everstep_proto::api;
use everstep_proto::wire::{encode_doubt_policy, encode_timestamp};
use everstep_store::{DoubtFilter, DoubtRecord, StepFilter, StepRecord, StepState};
use tonic::Status;

use crate::status;

/// Which steps to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) namespace: String,
    pub(crate) run: Option<RunId>,
    pub(crate) task_queue: Option<String>,
    /// Unspecified: all.
    pub(crate) state: api::StepState,
}

/// A step with its place in the list.
pub(super) type Listed = ((RunId, OpId), api::Step);

/// The first `limit` that match, after `after`.
pub(super) async fn list(
    engine: &Engine,
    question: &Question,
    after: Option<(RunId, OpId)>,
    limit: usize,
) -> Result<Vec<Listed>, Status> {
    let mut listed = Vec::new();
    if matches!(question.state, api::StepState::Unspecified | api::StepState::InDoubt) {
        listed = doubts(engine, question, after, limit).await?;
    }
    if question.state != api::StepState::InDoubt {
        let filter = StepFilter {
            namespace: question.namespace.clone(),
            run: question.run,
            task_queue: question.task_queue.clone(),
            state: match question.state {
                api::StepState::Queued => Some(StepState::Queued),
                api::StepState::Running => Some(StepState::Running),
                api::StepState::Unspecified | api::StepState::InDoubt => None,
            },
        };
        let found = engine.store().list_steps(&filter, after, limit).await;
        let found = found.map_err(|e| status::of_store(&e))?;
        listed.extend(found.into_iter().map(|record| ((record.run, record.task.step), queued(record))));
        listed.sort_by_key(|(place, _)| *place);
        listed.truncate(limit);
    }
    Ok(listed)
}

/// Steps in doubt. Their table knows no queues, so those of other queues are passed over here.
async fn doubts(
    engine: &Engine,
    question: &Question,
    mut after: Option<(RunId, OpId)>,
    limit: usize,
) -> Result<Vec<Listed>, Status> {
    let filter = DoubtFilter { namespace: question.namespace.clone(), run: question.run };
    let mut listed = Vec::new();
    loop {
        let found = engine.store().list_doubts(&filter, after, limit).await;
        let found = found.map_err(|e| status::of_store(&e))?;
        let all = found.len() < limit;
        after = found.last().map(|last| (last.run_id, last.doubt.step));
        let fits =
            |record: &DoubtRecord| question.task_queue.as_ref().is_none_or(|q| *q == record.task_queue);
        listed.extend(
            found.into_iter().filter(fits).map(|record| ((record.run_id, record.doubt.step), encode(record))),
        );
        if all || listed.len() >= limit {
            listed.truncate(limit);
            return Ok(listed);
        }
    }
}

/// An attempt in doubt as the wire has it.
pub(crate) fn encode(record: DoubtRecord) -> api::Step {
    let DoubtRecord { run_id, workflow_id, task_queue, doubt } = record;
    let policy: Option<DoubtPolicy> = Some(doubt.policy);
    api::Step {
        run_id: run_id.to_string(),
        workflow_id,
        step_id: doubt.step.0,
        name: doubt.name,
        attempt: doubt.attempt,
        state: api::StepState::InDoubt.into(),
        task_queue,
        since: Some(encode_timestamp(doubt.since)),
        doubt_policy: encode_doubt_policy(policy).into(),
        ..api::Step::default()
    }
}

fn queued(record: StepRecord) -> api::Step {
    let StepRecord { run, workflow_id, task, state, session, claimed_at, beat_at } = record;
    let (state, since) = match state {
        StepState::Queued => (api::StepState::Queued, Some(task.visible_at)),
        StepState::Running => (api::StepState::Running, claimed_at),
    };
    api::Step {
        run_id: run.to_string(),
        workflow_id,
        step_id: task.step.0,
        name: task.name,
        attempt: task.attempt,
        state: state.into(),
        task_queue: task.queue.task_queue,
        priority: u32::from(task.priority),
        since: since.map(encode_timestamp),
        session_id: session.map(|session| session.to_string()).unwrap_or_default(),
        last_heartbeat_at: beat_at.map(encode_timestamp),
        doubt_policy: encode_doubt_policy(None).into(),
        cancel_requested: task.canceled,
    }
}
