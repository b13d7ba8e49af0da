//! Queued steps, both ways: what a workflow asked for, and what of that is recorded.

use everstep_core::{CommitCommand, Duration, EventBody, OpId, QueuedOptions, StepScheduled};

use super::succession::{decode_recorded_policy, encode_recorded_policy};
use super::{
    InvalidKind, InvalidMessage, decode_doubt_policy, decode_duration, decode_payload, decode_retry_policy,
    encode_doubt_policy, encode_duration, encode_payload, encode_retry_policy,
};
use crate::{api, history};

fn duration(field: &str, wire: Option<prost_types::Duration>) -> Result<Option<Duration>, InvalidMessage> {
    wire.map(|wire| decode_duration(field, wire)).transpose()
}

/// A priority that is none is left for the core to refuse.
fn priority(wire: u32) -> Result<u8, InvalidMessage> {
    u8::try_from(wire).map_err(|_| {
        let problem = format!("must be from 1 to {}", QueuedOptions::PRIORITY_LAST);
        InvalidMessage::new(InvalidKind::Value, "priority", problem)
    })
}

pub(super) fn encode_scheduled(scheduled: &StepScheduled, omit: bool) -> history::StepScheduled {
    let StepScheduled { step, name, input, options } = scheduled;
    let QueuedOptions {
        task_queue,
        priority,
        schedule_to_start,
        start_to_close,
        schedule_to_close,
        heartbeat,
        retry,
        in_doubt,
    } = options;
    history::StepScheduled {
        step_id: step.0,
        name: name.clone(),
        input: (!omit).then(|| encode_payload(input)),
        task_queue: task_queue.clone(),
        priority: (*priority).into(),
        schedule_to_start: schedule_to_start.map(encode_duration),
        start_to_close: start_to_close.map(encode_duration),
        schedule_to_close: schedule_to_close.map(encode_duration),
        heartbeat: heartbeat.map(encode_duration),
        retry_policy: Some(encode_recorded_policy(retry)),
        in_doubt: encode_doubt_policy(*in_doubt).into(),
    }
}

pub(super) fn decode_scheduled(wire: history::StepScheduled) -> Result<EventBody, InvalidMessage> {
    scheduled(wire).map_err(|e| e.within("step_scheduled"))
}

fn scheduled(wire: history::StepScheduled) -> Result<EventBody, InvalidMessage> {
    let history::StepScheduled {
        step_id,
        name,
        input,
        task_queue,
        priority: wire_priority,
        schedule_to_start,
        start_to_close,
        schedule_to_close,
        heartbeat,
        retry_policy,
        in_doubt,
    } = wire;
    let options = QueuedOptions {
        task_queue,
        priority: priority(wire_priority)?,
        schedule_to_start: duration("schedule_to_start", schedule_to_start)?,
        start_to_close: duration("start_to_close", start_to_close)?,
        schedule_to_close: duration("schedule_to_close", schedule_to_close)?,
        heartbeat: duration("heartbeat", heartbeat)?,
        retry: decode_recorded_policy(
            "retry_policy",
            retry_policy.ok_or_else(|| InvalidMessage::missing("retry_policy"))?,
        )?,
        in_doubt: decode_doubt_policy("in_doubt", in_doubt)?,
    };
    let input = decode_payload(input);
    Ok(EventBody::StepScheduled(Box::new(StepScheduled { step: OpId(step_id), name, input, options })))
}

pub(super) fn encode_schedule_step(wanted: &StepScheduled) -> api::ScheduleStep {
    let history::StepScheduled {
        step_id,
        name,
        input,
        task_queue,
        priority,
        schedule_to_start,
        start_to_close,
        schedule_to_close,
        heartbeat,
        retry_policy: _,
        in_doubt,
    } = encode_scheduled(wanted, false);
    api::ScheduleStep {
        step_id,
        name,
        input,
        task_queue,
        priority,
        schedule_to_start,
        start_to_close,
        schedule_to_close,
        heartbeat,
        retry_policy: Some(encode_retry_policy(&wanted.options.retry)),
        in_doubt,
    }
}

pub(super) fn decode_schedule_step(wire: api::ScheduleStep) -> Result<CommitCommand, InvalidMessage> {
    let api::ScheduleStep {
        step_id,
        name,
        input,
        task_queue,
        priority: wire_priority,
        schedule_to_start,
        start_to_close,
        schedule_to_close,
        heartbeat,
        retry_policy,
        in_doubt,
    } = wire;
    let wire_priority =
        if wire_priority == 0 { QueuedOptions::PRIORITY_DEFAULT.into() } else { wire_priority };
    let options = QueuedOptions {
        task_queue,
        priority: priority(wire_priority)?,
        schedule_to_start: duration("schedule_to_start", schedule_to_start)?,
        start_to_close: duration("start_to_close", start_to_close)?,
        schedule_to_close: duration("schedule_to_close", schedule_to_close)?,
        heartbeat: duration("heartbeat", heartbeat)?,
        retry: decode_retry_policy("retry_policy", retry_policy)?,
        in_doubt: decode_doubt_policy("in_doubt", in_doubt)?,
    };
    let input = decode_payload(input);
    Ok(CommitCommand::ScheduleStep(Box::new(StepScheduled { step: OpId(step_id), name, input, options })))
}
