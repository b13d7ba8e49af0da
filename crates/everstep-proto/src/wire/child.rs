//! What passes between runs, both ways: in histories, and as what a workflow asks for.

use everstep_core::{
    ChildClosed, ChildOutcome, ChildScheduled, EventBody, ExternalAction, ExternalRequested, ExternalTarget,
    Failure, OpId, ParentClose, ParentLink, Payload, ReusePolicy, RunId, RunStatus,
};

use super::succession::{decode_recorded_policy, encode_recorded_policy};
use super::value::encode_failure_bare;
use super::{
    InvalidKind, InvalidMessage, decode_duration, decode_failure, decode_notes, decode_payload,
    encode_duration, encode_failure, encode_notes, encode_payload, parse_id,
};
use crate::history::{self, child_closed, event::Attributes, external_requested};

pub(super) fn encode_parent(link: &ParentLink) -> history::ParentLink {
    let ParentLink { run_id, child, scheduled, report_start, above } = *link;
    history::ParentLink {
        run_id: run_id.to_string(),
        child_id: child.0,
        scheduled_seq: scheduled,
        report_start,
        above,
    }
}

pub(super) fn decode_parent(wire: history::ParentLink) -> Result<ParentLink, InvalidMessage> {
    let history::ParentLink { run_id, child_id, scheduled_seq, report_start, above } = wire;
    let run_id = parse_id("parent.run_id", &run_id)?;
    Ok(ParentLink { run_id, child: OpId(child_id), scheduled: scheduled_seq, report_start, above })
}

/// An event between runs; `None` for any other.
pub(super) fn encode_between(body: &EventBody, omit: bool) -> Option<Attributes> {
    let why = |failure: &Failure| if omit { encode_failure_bare(failure) } else { encode_failure(failure) };
    Some(match body {
        EventBody::ChildScheduled(scheduled) => Attributes::ChildScheduled(encode_child(scheduled, omit)),
        EventBody::ChildStarted { child, scheduled } => {
            Attributes::ChildStarted(history::ChildStarted { child_id: child.0, scheduled_seq: *scheduled })
        }
        EventBody::ChildClosed(closed) => Attributes::ChildClosed(encode_closed(closed, omit)),
        EventBody::ExternalRequested(requested) => {
            Attributes::ExternalRequested(encode_external(requested, omit))
        }
        EventBody::ExternalResolved { op, requested, failure } => {
            Attributes::ExternalResolved(history::ExternalResolved {
                op_id: op.0,
                requested_seq: *requested,
                failure: failure.as_ref().map(why),
            })
        }
        _ => return None,
    })
}

pub(super) fn decode_started(wire: history::ChildStarted) -> EventBody {
    let history::ChildStarted { child_id, scheduled_seq } = wire;
    EventBody::ChildStarted { child: OpId(child_id), scheduled: scheduled_seq }
}

pub(super) fn decode_resolved(wire: history::ExternalResolved) -> Result<EventBody, InvalidMessage> {
    let history::ExternalResolved { op_id, requested_seq, failure } = wire;
    let failure = failure.map(|f| decode_failure("external_resolved.failure", Some(f))).transpose()?;
    Ok(EventBody::ExternalResolved { op: OpId(op_id), requested: requested_seq, failure })
}

pub(super) fn encode_child(scheduled: &ChildScheduled, omit: bool) -> history::ChildScheduled {
    let ChildScheduled {
        child,
        run_id,
        workflow_type,
        workflow_id,
        task_queue,
        input,
        run_timeout,
        retry,
        reuse,
        on_parent_close,
        report_start,
        notes,
    } = scheduled;
    let (search_attributes, memo) = encode_notes(notes);
    history::ChildScheduled {
        child_id: child.0,
        run_id: run_id.to_string(),
        workflow_type: workflow_type.clone(),
        workflow_id: workflow_id.clone(),
        task_queue: task_queue.clone(),
        input: (!omit).then(|| encode_payload(input)),
        run_timeout: run_timeout.map(encode_duration),
        retry_policy: retry.as_ref().map(encode_recorded_policy),
        reuse_policy: encode_reuse(*reuse).into(),
        on_parent_close: encode_policy(*on_parent_close).into(),
        report_start: *report_start,
        memo,
        search_attributes,
    }
}

/// Reads a child; the run id may be empty, as in a command, and is then nil.
pub(super) fn decode_child(wire: history::ChildScheduled) -> Result<ChildScheduled, InvalidMessage> {
    let history::ChildScheduled {
        child_id,
        run_id,
        workflow_type,
        workflow_id,
        task_queue,
        input,
        run_timeout,
        retry_policy,
        reuse_policy,
        on_parent_close,
        report_start,
        memo,
        search_attributes,
    } = wire;
    let nil = RunId::from_uuid(uuid::Uuid::nil());
    Ok(ChildScheduled {
        child: OpId(child_id),
        run_id: if run_id.is_empty() { nil } else { parse_id("run_id", &run_id)? },
        workflow_type,
        workflow_id,
        task_queue,
        input: decode_payload(input),
        run_timeout: run_timeout.map(|d| decode_duration("run_timeout", d)).transpose()?,
        retry: retry_policy.map(|p| decode_recorded_policy("retry_policy", p)).transpose()?,
        reuse: decode_reuse(reuse_policy)?,
        on_parent_close: decode_policy(on_parent_close)?,
        report_start,
        notes: decode_notes((search_attributes, memo))?,
    })
}

fn encode_reuse(policy: ReusePolicy) -> history::ChildReusePolicy {
    match policy {
        ReusePolicy::Allow => history::ChildReusePolicy::Allow,
        ReusePolicy::AllowIfNotCompleted => history::ChildReusePolicy::AllowIfNotCompleted,
        ReusePolicy::Reject => history::ChildReusePolicy::Reject,
    }
}

fn decode_reuse(wire: i32) -> Result<ReusePolicy, InvalidMessage> {
    Ok(match history::ChildReusePolicy::try_from(wire) {
        Ok(history::ChildReusePolicy::Unspecified | history::ChildReusePolicy::Allow) => ReusePolicy::Allow,
        Ok(history::ChildReusePolicy::AllowIfNotCompleted) => ReusePolicy::AllowIfNotCompleted,
        Ok(history::ChildReusePolicy::Reject) => ReusePolicy::Reject,
        Err(_) => return Err(unknown("reuse_policy", wire)),
    })
}

fn encode_policy(policy: ParentClose) -> history::ParentClosePolicy {
    match policy {
        ParentClose::Terminate => history::ParentClosePolicy::Terminate,
        ParentClose::RequestCancel => history::ParentClosePolicy::RequestCancel,
        ParentClose::Abandon => history::ParentClosePolicy::Abandon,
    }
}

fn decode_policy(wire: i32) -> Result<ParentClose, InvalidMessage> {
    Ok(match history::ParentClosePolicy::try_from(wire) {
        Ok(history::ParentClosePolicy::Unspecified | history::ParentClosePolicy::Terminate) => {
            ParentClose::Terminate
        }
        Ok(history::ParentClosePolicy::RequestCancel) => ParentClose::RequestCancel,
        Ok(history::ParentClosePolicy::Abandon) => ParentClose::Abandon,
        Err(_) => return Err(unknown("on_parent_close", wire)),
    })
}

fn unknown(field: &str, wire: i32) -> InvalidMessage {
    InvalidMessage::new(InvalidKind::UnknownEnum, field, format!("has the unknown value {wire}"))
}

fn encode_closed(closed: &ChildClosed, omit: bool) -> history::ChildClosed {
    let ChildClosed { child, scheduled, run_id, outcome } = closed;
    let why = |failure: &Failure| if omit { encode_failure_bare(failure) } else { encode_failure(failure) };
    let said = match outcome {
        ChildOutcome::Completed(_) if omit => child_closed::Outcome::Result(history::Payload::default()),
        ChildOutcome::Completed(result) => child_closed::Outcome::Result(encode_payload(result)),
        ChildOutcome::Ended { status: _, failure } => child_closed::Outcome::Failure(why(failure)),
        ChildOutcome::NotStarted(failure) => child_closed::Outcome::NotStarted(why(failure)),
    };
    history::ChildClosed {
        child_id: child.0,
        scheduled_seq: *scheduled,
        run_id: run_id.to_string(),
        status: outcome.as_str().to_owned(),
        outcome: Some(said),
    }
}

pub(super) fn decode_closed(wire: history::ChildClosed) -> Result<ChildClosed, InvalidMessage> {
    let history::ChildClosed { child_id, scheduled_seq, run_id, status, outcome } = wire;
    let outcome = match outcome {
        Some(child_closed::Outcome::Result(result)) => ChildOutcome::Completed(decode_payload(Some(result))),
        Some(child_closed::Outcome::Failure(failure)) => {
            let failure = decode_failure("failure", Some(failure))?;
            let known = RunStatus::parse(&status);
            let status = known.filter(|s| s.is_closed() && *s != RunStatus::Completed).ok_or_else(|| {
                let problem = format!("'{status}' is no way in which a run ends without a result");
                InvalidMessage::new(InvalidKind::Value, "status", problem)
            })?;
            ChildOutcome::Ended { status, failure }
        }
        Some(child_closed::Outcome::NotStarted(failure)) => {
            ChildOutcome::NotStarted(decode_failure("not_started", Some(failure))?)
        }
        None => return Err(InvalidMessage::missing("outcome")),
    };
    let run_id = parse_id("run_id", &run_id)?;
    Ok(ChildClosed { child: OpId(child_id), scheduled: scheduled_seq, run_id, outcome })
}

pub(super) fn encode_external(requested: &ExternalRequested, omit: bool) -> history::ExternalRequested {
    let ExternalRequested { op, target, action } = requested;
    let target = match target {
        ExternalTarget::Run(run) => external_requested::Target::RunId(run.to_string()),
        ExternalTarget::Workflow(id) => external_requested::Target::WorkflowId(id.clone()),
    };
    let action = match action {
        ExternalAction::Signal { name, input } => {
            external_requested::Action::Signal(history::ExternalSignal {
                name: name.clone(),
                input: (!omit).then(|| encode_payload(input)),
            })
        }
        ExternalAction::Cancel { reason } => {
            external_requested::Action::Cancel(history::ExternalCancel { reason: reason.clone() })
        }
    };
    history::ExternalRequested { op_id: op.0, target: Some(target), action: Some(action) }
}

pub(super) fn decode_external(wire: history::ExternalRequested) -> Result<ExternalRequested, InvalidMessage> {
    let history::ExternalRequested { op_id, target, action } = wire;
    let target = match target {
        Some(external_requested::Target::RunId(id)) => ExternalTarget::Run(parse_id("run_id", &id)?),
        Some(external_requested::Target::WorkflowId(id)) => ExternalTarget::Workflow(id),
        None => return Err(InvalidMessage::missing("target")),
    };
    let action = match action {
        Some(external_requested::Action::Signal(history::ExternalSignal { name, input })) => {
            let input: Payload = decode_payload(input);
            ExternalAction::Signal { name, input }
        }
        Some(external_requested::Action::Cancel(history::ExternalCancel { reason })) => {
            ExternalAction::Cancel { reason }
        }
        None => return Err(InvalidMessage::missing("action")),
    };
    Ok(ExternalRequested { op: OpId(op_id), target, action })
}
