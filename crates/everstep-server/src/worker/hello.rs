//! The first message of a worker's stream.

use std::collections::VecDeque;
use std::time::Duration;

use everstep_engine::{HeldRun, Hello};
use everstep_proto::api::{self, worker_message::Message};
use everstep_proto::wire::{decode_worker_info, parse_id};
use everstep_proto::{InvalidKind, InvalidMessage};
use tonic::{Status, Streaming};

use super::{asks, steps, token};
use crate::check::Check;
use crate::{reason, status};

/// The protocol that this server speaks.
pub(super) const PROTOCOL: u32 = 1;
const TASK_QUEUES_MAX: usize = 100;
const WORKFLOW_TYPES_MAX: usize = 1_000;
const CAPABILITIES_MAX: usize = 100;
const COMPATIBLE_BUILDS_MAX: usize = 100;
const RUN_SLOTS_MAX: u32 = 100_000;
/// How long a stream may be silent before its first message.
const HELLO_WAIT: Duration = Duration::from_secs(10);

/// The first frame.
pub(super) struct Opening {
    pub(super) hello: api::Hello,
    /// What came with it.
    pub(super) rest: VecDeque<api::WorkerMessage>,
}

/// Waits for the first frame and takes the Hello out of it.
pub(super) async fn receive(inbound: &mut Streaming<api::ConnectRequest>) -> Result<Opening, Status> {
    let first = async {
        loop {
            match inbound.message().await.map_err(|s| status::of_framework(&s).unwrap_or(s))? {
                Some(frame) if frame.messages.is_empty() => {}
                other => return Ok::<_, Status>(other),
            }
        }
    };
    let frame = tokio::time::timeout(HELLO_WAIT, first)
        .await
        .map_err(|_| no_hello("no message came within 10 s"))??;
    let mut rest: VecDeque<_> = frame.map(|f| f.messages).unwrap_or_default().into();
    match rest.pop_front().map(|m| m.message) {
        Some(Some(Message::Hello(hello))) => Ok(Opening { hello, rest }),
        Some(_) => Err(no_hello("must be hello in the first message of a stream")),
        None => Err(no_hello("must be hello, but the stream ended before it")),
    }
}

fn no_hello(problem: &str) -> Status {
    status::of_invalid(InvalidMessage::new(InvalidKind::Missing, "messages[0]", problem))
}

/// Checks what a worker says about itself.
pub(super) fn check(hello: api::Hello) -> Result<Hello, Status> {
    let api::Hello {
        protocol_min,
        protocol_max,
        namespace,
        task_queues,
        workflow_types,
        worker,
        run_slots,
        session_token,
        held,
        check_only,
        compatible_builds,
        pinned_workflow_types,
        step_types,
        step_slots,
        steps_per_second,
        held_steps,
        capabilities,
    } = hello;
    let mut check = Check::default();
    protocol(&mut check, protocol_min, protocol_max)?;
    let namespace = check.name_or_default("hello.namespace", namespace);
    if task_queues.is_empty() {
        check.refuse("hello.task_queues", reason::INVALID_ARGUMENT, "must name at least one task queue");
    }
    let task_queues = names(&mut check, "hello.task_queues", task_queues, TASK_QUEUES_MAX);
    let workflow_types = names(&mut check, "hello.workflow_types", workflow_types, WORKFLOW_TYPES_MAX);
    let pinned_types =
        names(&mut check, "hello.pinned_workflow_types", pinned_workflow_types, WORKFLOW_TYPES_MAX);
    let continues = builds(&mut check, compatible_builds);
    let worker = check.worker(decode_worker_info(worker));
    let only_steps = check_only || (step_slots > 0 && !step_types.is_empty());
    if (run_slots == 0 && !only_steps) || run_slots > RUN_SLOTS_MAX {
        check.refuse("hello.run_slots", reason::INVALID_ARGUMENT, format!("must be 1 to {RUN_SLOTS_MAX}"));
    }
    let resume = token::session(&session_token);
    if resume.is_none() && !session_token.is_empty() {
        check.refuse("hello.session_token", reason::INVALID_SESSION_TOKEN, "is not one that a Welcome gave");
    }
    let held = held_runs(&mut check, held);
    let can = |word| capabilities.iter().any(|capability| capability == word);
    let said =
        steps::Said { types: step_types, slots: step_slots, per_second: steps_per_second, held: held_steps };
    let offer = steps::offer(&mut check, said);
    let steps = (can(steps::CAPABILITY) && !check_only).then_some(offer);
    if capabilities.len() > CAPABILITIES_MAX {
        let problem =
            format!("has {} entries, more than the limit of {CAPABILITIES_MAX}", capabilities.len());
        check.refuse("hello.capabilities", reason::LIMIT_EXCEEDED, problem);
    }
    check.finish()?;
    Ok(Hello {
        namespace,
        task_queues,
        workflow_types,
        asks: can(asks::CAPABILITY),
        checks: can(asks::CHECKS),
        check_only,
        pinned_types,
        continues,
        worker,
        run_slots: if check_only { 0 } else { run_slots },
        steps,
        resume,
        held,
    })
}

/// The versions that the worker speaks, both ends included.
fn protocol(check: &mut Check, protocol_min: u32, protocol_max: u32) -> Result<(), Status> {
    if protocol_min == 0 {
        check.refuse("hello.protocol_min", reason::INVALID_ARGUMENT, "must be 1 or more");
    } else if protocol_max < protocol_min {
        check.refuse("hello.protocol_min", reason::INVALID_ARGUMENT, "must not be above protocol_max");
        check.refuse("hello.protocol_max", reason::INVALID_ARGUMENT, "must not be below protocol_min");
    } else if !(protocol_min..=protocol_max).contains(&PROTOCOL) {
        let message =
            format!("the worker speaks protocol {protocol_min} to {protocol_max}, the server {PROTOCOL}");
        return Err(status::with_metadata(
            reason::UNSUPPORTED_PROTOCOL,
            message,
            [("protocol_min", PROTOCOL.to_string()), ("protocol_max", PROTOCOL.to_string())],
        ));
    }
    Ok(())
}

pub(super) fn names(check: &mut Check, field: &str, names: Vec<String>, max: usize) -> Vec<String> {
    if names.len() > max {
        let problem = format!("has {} entries, more than the limit of {max}", names.len());
        check.refuse(field, reason::LIMIT_EXCEEDED, problem);
        return Vec::new();
    }
    names.into_iter().enumerate().map(|(i, name)| check.name(format!("{field}[{i}]"), name)).collect()
}

fn builds(check: &mut Check, builds: Vec<String>) -> Vec<String> {
    let field = "hello.compatible_builds";
    if builds.len() > COMPATIBLE_BUILDS_MAX {
        let problem = format!("has {} entries, more than the limit of {COMPATIBLE_BUILDS_MAX}", builds.len());
        check.refuse(field, reason::LIMIT_EXCEEDED, problem);
        return Vec::new();
    }
    let max = everstep_core::limits::NAME_BYTES_MAX;
    let mut one = |(i, build): (usize, String)| {
        if build.is_empty() {
            check.refuse(format!("{field}[{i}]"), reason::INVALID_ARGUMENT, "must name a build");
        }
        check.text(format!("{field}[{i}]"), build, max)
    };
    builds.into_iter().enumerate().map(&mut one).collect()
}

fn held_runs(check: &mut Check, held: Vec<api::HeldRun>) -> Vec<HeldRun> {
    if held.len() > RUN_SLOTS_MAX as usize {
        let problem = format!("has {} entries, more than the limit of {RUN_SLOTS_MAX}", held.len());
        check.refuse("hello.held", reason::LIMIT_EXCEEDED, problem);
        return Vec::new();
    }
    let mut runs = Vec::with_capacity(held.len());
    for (i, api::HeldRun { run_id, epoch, seen_seq }) in held.into_iter().enumerate() {
        match parse_id("run_id", &run_id) {
            Ok(run_id) => runs.push(HeldRun { run_id, epoch, seen: seen_seq }),
            Err(error) => check.take(Err(error.within(&format!("hello.held[{i}]")))),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
