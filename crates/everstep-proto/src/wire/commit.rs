//! What a worker did, both ways.

use everstep_core::{CommitCommand, OpId, RunId, WorkerCommit};

use super::{
    InvalidKind, InvalidMessage, decode_blocked, decode_doubt_policy, decode_duration, decode_failure,
    decode_payload, decode_retry_policy, decode_timestamp, encode_blocked, encode_doubt_policy,
    encode_duration, encode_failure, encode_payload, encode_retry_policy, encode_timestamp, parse_id,
};
use super::{child, notes, queued, succession, update};
use crate::api::{self, command::Command};

/// A commit as the wire has it.
pub fn encode_commit(run: RunId, commit: &WorkerCommit) -> api::Commit {
    let WorkerCommit { epoch, number, seen, commands, ahead } = commit;
    api::Commit {
        run_id: run.to_string(),
        epoch: *epoch,
        number: *number,
        seen_seq: *seen,
        commands: commands.iter().map(encode_command).collect(),
        ahead_at: ahead.map(encode_timestamp),
    }
}

/// Reads a commit. Whether it fits its run is the core's to judge.
///
/// # Errors
/// [`InvalidMessage`] naming the field, from `commands[0]` on.
pub fn decode_commit(wire: api::Commit) -> Result<(RunId, WorkerCommit), InvalidMessage> {
    let api::Commit { run_id, epoch, number, seen_seq, commands, ahead_at } = wire;
    let run = parse_id("run_id", &run_id)?;
    if number == 0 {
        return Err(InvalidMessage::new(InvalidKind::Value, "number", "must count from 1"));
    }
    let commands: Result<Vec<_>, _> = commands
        .into_iter()
        .enumerate()
        .map(|(index, command)| decode_command(command).map_err(|e| e.within(&format!("commands[{index}]"))))
        .collect();
    let ahead = ahead_at.map(|at| decode_timestamp("ahead_at", at)).transpose()?;
    Ok((run, WorkerCommit { epoch, number, seen: seen_seq, commands: commands?, ahead }))
}

fn encode_command(command: &CommitCommand) -> api::Command {
    let command = match command {
        CommitCommand::StartStep { step, name, attempt, in_doubt } => Command::StartStep(api::StartStep {
            step_id: step.0,
            name: name.clone(),
            attempt: *attempt,
            in_doubt: encode_doubt_policy(*in_doubt).into(),
        }),
        CommitCommand::CompleteStep { step, name, attempt, elapsed, result } => {
            Command::CompleteStep(api::CompleteStep {
                step_id: step.0,
                name: name.clone(),
                attempt: *attempt,
                elapsed: Some(encode_duration(*elapsed)),
                result: Some(encode_payload(result)),
            })
        }
        CommitCommand::FailStep { step, name, attempt, elapsed, failure, policy } => {
            Command::FailStep(api::FailStep {
                step_id: step.0,
                name: name.clone(),
                attempt: *attempt,
                elapsed: Some(encode_duration(*elapsed)),
                failure: Some(encode_failure(failure)),
                retry_policy: policy.as_ref().map(encode_retry_policy),
            })
        }
        CommitCommand::ScheduleStep(wanted) => Command::ScheduleStep(queued::encode_schedule_step(wanted)),
        CommitCommand::CancelStep { step } => Command::CancelStep(api::CancelStep { step_id: step.0 }),
        CommitCommand::StartTimer { timer, delay } => {
            Command::StartTimer(api::StartTimer { timer_id: timer.0, delay: Some(encode_duration(*delay)) })
        }
        CommitCommand::CancelTimer { timer } => Command::CancelTimer(api::CancelTimer { timer_id: timer.0 }),
        CommitCommand::StartChild(wanted) => {
            let wanted = child::encode_child(wanted, false);
            Command::StartChild(crate::history::ChildScheduled { run_id: String::new(), ..wanted })
        }
        CommitCommand::RequestExternal(wanted) => {
            Command::RequestExternal(child::encode_external(wanted, false))
        }
        CommitCommand::CompleteUpdate { accepted, outcome } => update::encode_complete(*accepted, outcome),
        CommitCommand::Upsert { op, notes } => notes::encode_upsert(*op, notes),
        CommitCommand::MarkVersion { change_id, version } => {
            Command::MarkVersion(api::MarkVersion { change_id: change_id.clone(), version: *version })
        }
        CommitCommand::CompleteRun { result, unconsumed } => Command::CompleteRun(api::CompleteRun {
            result: Some(encode_payload(result)),
            unconsumed: unconsumed.clone(),
        }),
        CommitCommand::FailRun { failure, unconsumed } => Command::FailRun(api::FailRun {
            failure: Some(encode_failure(failure)),
            unconsumed: unconsumed.clone(),
        }),
        CommitCommand::ContinueAsNew(next) => Command::ContinueAsNew(succession::encode_continue(next)),
        CommitCommand::CancelRun { details } => {
            Command::CancelRun(api::CancelRunAccepted { details: details.clone() })
        }
        CommitCommand::Park => Command::Park(api::Park {}),
        CommitCommand::Release { reason } => Command::Release(api::Release { reason: reason.clone() }),
        CommitCommand::Block(blocked) => Command::Block(encode_blocked(blocked)),
    };
    api::Command { command: Some(command) }
}

fn decode_command(wire: api::Command) -> Result<CommitCommand, InvalidMessage> {
    let api::Command { command } = wire;
    Ok(match command {
        Some(Command::StartStep(api::StartStep { step_id, name, attempt, in_doubt })) => {
            let in_doubt = decode_doubt_policy("start_step.in_doubt", in_doubt)?;
            CommitCommand::StartStep { step: OpId(step_id), name, attempt, in_doubt }
        }
        Some(Command::CompleteStep(api::CompleteStep { step_id, name, attempt, elapsed, result })) => {
            CommitCommand::CompleteStep {
                step: OpId(step_id),
                name,
                attempt,
                elapsed: decode_duration("complete_step.elapsed", elapsed.unwrap_or_default())?,
                result: decode_payload(result),
            }
        }
        Some(Command::FailStep(failed)) => decode_fail_step(failed).map_err(|e| e.within("fail_step"))?,
        Some(Command::ScheduleStep(wanted)) => {
            queued::decode_schedule_step(wanted).map_err(|e| e.within("schedule_step"))?
        }
        Some(Command::CancelStep(api::CancelStep { step_id })) => {
            CommitCommand::CancelStep { step: OpId(step_id) }
        }
        Some(Command::StartTimer(api::StartTimer { timer_id, delay })) => {
            let delay = delay.ok_or_else(|| InvalidMessage::missing("start_timer.delay"))?;
            CommitCommand::StartTimer {
                timer: OpId(timer_id),
                delay: decode_duration("start_timer.delay", delay)?,
            }
        }
        Some(Command::CancelTimer(api::CancelTimer { timer_id })) => {
            CommitCommand::CancelTimer { timer: OpId(timer_id) }
        }
        Some(Command::StartChild(wanted)) => {
            let wanted = child::decode_child(wanted).map_err(|e| e.within("start_child"))?;
            CommitCommand::StartChild(Box::new(wanted))
        }
        Some(Command::RequestExternal(wanted)) => {
            let wanted = child::decode_external(wanted).map_err(|e| e.within("request_external"))?;
            CommitCommand::RequestExternal(Box::new(wanted))
        }
        Some(Command::CompleteUpdate(completed)) => update::decode_complete(completed)?,
        Some(Command::Upsert(upsert)) => notes::decode_upsert(upsert).map_err(|e| e.within("upsert"))?,
        Some(Command::MarkVersion(api::MarkVersion { change_id, version })) => {
            CommitCommand::MarkVersion { change_id, version }
        }
        Some(Command::CompleteRun(api::CompleteRun { result, unconsumed })) => {
            CommitCommand::CompleteRun { result: decode_payload(result), unconsumed }
        }
        Some(Command::FailRun(api::FailRun { failure, unconsumed })) => {
            CommitCommand::FailRun { failure: decode_failure("fail_run.failure", failure)?, unconsumed }
        }
        Some(Command::ContinueAsNew(next)) => {
            CommitCommand::ContinueAsNew(Box::new(succession::decode_continue(next)?))
        }
        Some(Command::CancelRun(api::CancelRunAccepted { details })) => CommitCommand::CancelRun { details },
        Some(Command::Park(api::Park {})) => CommitCommand::Park,
        Some(Command::Release(api::Release { reason })) => CommitCommand::Release { reason },
        Some(Command::Block(blocked)) => {
            CommitCommand::Block(Box::new(decode_blocked(blocked).map_err(|e| e.within("block"))?))
        }
        None => return Err(InvalidMessage::missing("command")),
    })
}

fn decode_fail_step(wire: api::FailStep) -> Result<CommitCommand, InvalidMessage> {
    let api::FailStep { step_id, name, attempt, elapsed, failure, retry_policy } = wire;
    let policy = retry_policy.map(|policy| decode_retry_policy("retry_policy", Some(policy))).transpose()?;
    Ok(CommitCommand::FailStep {
        step: OpId(step_id),
        name,
        attempt,
        elapsed: decode_duration("elapsed", elapsed.unwrap_or_default())?,
        failure: decode_failure("failure", failure)?,
        policy,
    })
}
