//! What comes with a start: for the run that is started, or for the one that is there.

use crate::run::check_payload;
use crate::{Actor, Command, CommandBody, CommandId, Payload, Rejection, Run, validate_name};

/// What the caller of a start wants of the run, whether it starts or is there.
#[derive(Clone, Debug, PartialEq)]
pub enum FirstMessage {
    /// It gets this signal; a run that starts has it in the append that starts it.
    Signal {
        /// Name that the workflow waits for.
        name: String,
        /// The sender's id of the signal.
        signal_id: String,
        /// The message.
        input: Payload,
    },
    /// It is asked for this update, once it is there.
    Update {
        /// The caller's id of the update.
        update_id: String,
    },
}

impl FirstMessage {
    /// Refuses what no run would take.
    ///
    /// # Errors
    /// [`Rejection::InvalidId`], [`Rejection::LimitExceeded`].
    pub(crate) fn validate(&self) -> Result<(), Rejection> {
        match self {
            Self::Signal { name, signal_id, input } => {
                validate_name("name", name)?;
                validate_name("request_id", signal_id)?;
                check_payload("signal_input", input)
            }
            Self::Update { update_id } => validate_name("update_id", update_id),
        }
    }

    /// What of it makes a start the same request.
    pub(crate) fn hash(&self, field: &mut impl FnMut(&[u8])) {
        match self {
            Self::Signal { name, signal_id, input } => {
                field(b"signal");
                field(name.as_bytes());
                field(signal_id.as_bytes());
                field(input.encoding.as_bytes());
                field(&input.data);
            }
            Self::Update { update_id } => {
                field(b"update");
                field(update_id.as_bytes());
            }
        }
    }

    /// The command that belongs into the append of the start, if there is one.
    pub fn command(&self, id: CommandId, actor: Actor) -> Option<Command> {
        match self {
            Self::Signal { name, signal_id, input } => {
                let (name, signal_id, input) = (name.clone(), signal_id.clone(), input.clone());
                Some(Command { id, actor, body: CommandBody::Signal { name, signal_id, input } })
            }
            Self::Update { .. } => None,
        }
    }

    /// Whether the run has had it: an earlier call with the same request found this run open.
    pub fn was_taken_by(&self, run: &Run) -> bool {
        match self {
            Self::Signal { signal_id, .. } => run.knows_signal(signal_id),
            Self::Update { update_id } => run.update(update_id).is_some(),
        }
    }
}
