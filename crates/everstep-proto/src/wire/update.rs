//! Updates, both ways.

use everstep_core::{CommitCommand, EventBody, Payload, Seq, UpdateOutcome};

use super::value::{encode_failure_bare, encode_payload};
use super::{InvalidMessage, decode_failure, decode_payload, encode_failure};
use crate::api::{self, command::Command, complete_update};
use crate::history::{self, event::Attributes, update_completed};

/// The kinds that are about an update; `None` for any other.
pub(super) fn encode(body: &EventBody, omit: bool) -> Option<Attributes> {
    Some(match body {
        EventBody::UpdateAccepted { update_id, name, input } => {
            encode_accepted(update_id, name, (!omit).then_some(input))
        }
        EventBody::UpdateCompleted { accepted, update_id, outcome } => {
            encode_completed(*accepted, update_id, outcome, omit)
        }
        _ => return None,
    })
}

fn encode_accepted(update_id: &str, name: &str, input: Option<&Payload>) -> Attributes {
    Attributes::UpdateAccepted(history::UpdateAccepted {
        update_id: update_id.to_owned(),
        name: name.to_owned(),
        input: input.map(encode_payload),
    })
}

pub(super) fn decode_accepted(wire: history::UpdateAccepted) -> EventBody {
    let history::UpdateAccepted { update_id, name, input } = wire;
    EventBody::UpdateAccepted { update_id, name, input: decode_payload(input) }
}

fn encode_completed(accepted: Seq, update_id: &str, outcome: &UpdateOutcome, omit: bool) -> Attributes {
    use update_completed::Outcome;
    let outcome = match outcome {
        UpdateOutcome::Completed(_) if omit => Outcome::Result(history::Payload::default()),
        UpdateOutcome::Completed(result) => Outcome::Result(encode_payload(result)),
        UpdateOutcome::Failed(failure) if omit => Outcome::Failure(encode_failure_bare(failure)),
        UpdateOutcome::Failed(failure) => Outcome::Failure(encode_failure(failure)),
    };
    Attributes::UpdateCompleted(history::UpdateCompleted {
        accepted_seq: accepted,
        update_id: update_id.to_owned(),
        outcome: Some(outcome),
    })
}

pub(super) fn decode_completed(wire: history::UpdateCompleted) -> Result<EventBody, InvalidMessage> {
    use update_completed::Outcome;
    let history::UpdateCompleted { accepted_seq, update_id, outcome } = wire;
    let outcome = match outcome {
        Some(Outcome::Result(result)) => UpdateOutcome::Completed(decode_payload(Some(result))),
        Some(Outcome::Failure(failure)) => {
            UpdateOutcome::Failed(decode_failure("update_completed.failure", Some(failure))?)
        }
        None => return Err(InvalidMessage::missing("update_completed.outcome")),
    };
    Ok(EventBody::UpdateCompleted { accepted: accepted_seq, update_id, outcome })
}

pub(super) fn encode_complete(accepted: Seq, outcome: &UpdateOutcome) -> Command {
    use complete_update::Outcome;
    let outcome = match outcome {
        UpdateOutcome::Completed(result) => Outcome::Result(encode_payload(result)),
        UpdateOutcome::Failed(failure) => Outcome::Failure(encode_failure(failure)),
    };
    Command::CompleteUpdate(api::CompleteUpdate { accepted_seq: accepted, outcome: Some(outcome) })
}

pub(super) fn decode_complete(wire: api::CompleteUpdate) -> Result<CommitCommand, InvalidMessage> {
    use complete_update::Outcome;
    let api::CompleteUpdate { accepted_seq, outcome } = wire;
    let outcome = match outcome {
        Some(Outcome::Result(result)) => UpdateOutcome::Completed(decode_payload(Some(result))),
        Some(Outcome::Failure(failure)) => {
            UpdateOutcome::Failed(decode_failure("complete_update.failure", Some(failure))?)
        }
        None => return Err(InvalidMessage::missing("complete_update.outcome")),
    };
    Ok(CommitCommand::CompleteUpdate { accepted: accepted_seq, outcome })
}
