//! What one append is, and what becomes of it.

use std::sync::Arc;

use everstep_core::{Event, RunId, Timestamp, Write};

use crate::Error;

/// An append with one verdict: events and projection writes of one run, or of two that stand or fall
/// together (terminate-and-start, continue-as-new).
#[derive(Clone, Debug)]
pub struct Append {
    /// The run.
    pub run: RunAppend,
    /// A second run in the same verdict.
    pub with: Option<Box<RunAppend>>,
}

/// Events and projection writes of one run, in one transaction.
#[derive(Clone, Debug)]
pub struct RunAppend {
    /// The run.
    pub run_id: RunId,
    /// The claim on the workflow id, exactly when the first event is `RunStarted`.
    pub start: Option<StartClaim>,
    /// The events: at least one, seqs ascending without a gap. The first one's seq is the expected
    /// position: its predecessor must be the run's last event.
    pub events: Arc<Vec<Event>>,
    /// Projection writes that go with them.
    pub writes: Vec<Write>,
}

/// The compare-and-set that stands in for the log of a run that has none yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartClaim {
    /// Isolation boundary.
    pub namespace: String,
    /// The business key to claim.
    pub workflow_id: String,
    /// The run that holds the key now, as far as the caller knows.
    pub expected: Option<RunId>,
    /// The caller's request id, kept with the run.
    pub request_id: String,
    /// Hash of the request's body, to tell a repeat from a misuse.
    pub body_hash: [u8; 32],
}

/// What became of one append.
#[derive(Debug)]
pub enum Verdict {
    /// It is durable, all of it.
    Committed,
    /// Somebody else's event (or start) stands at that position; nothing of this append was written.
    /// Also the answer to an append that was committed before and is submitted again.
    Conflict,
    /// See [`Error`]: [`Error::OutcomeUnknown`] means that it may or may not be durable, every other
    /// variant that it is not.
    Failed(Error),
}

/// The verdicts of a batch.
#[derive(Debug)]
pub struct AppendReply {
    /// Database time at (or just after) the commit; `None` when nothing reached the database.
    pub now: Option<Timestamp>,
    /// One per append, in the order given.
    pub verdicts: Vec<Verdict>,
}

impl Append {
    /// An append of one run.
    pub fn of(run: RunAppend) -> Self {
        Self { run, with: None }
    }

    /// What makes this append one that nobody should submit, if anything does. Adapters refuse it with
    /// [`Error::Refused`] before it reaches the database.
    pub fn malformed(&self) -> Option<String> {
        if self.with.as_ref().is_some_and(|with| with.run_id == self.run.run_id) {
            return Some("a group names the same run twice".to_owned());
        }
        self.runs().find_map(|run| {
            let Some(first) = run.events.first() else {
                return Some("an append holds at least one event".to_owned());
            };
            let ordered = run.events.windows(2).all(|pair| pair[0].seq.checked_add(1) == Some(pair[1].seq));
            if first.seq == 0 || !ordered {
                return Some(format!("events of run {} are not in order of seq, from 1", run.run_id));
            }
            let misplaced = run.start.is_some() && first.seq != 1;
            misplaced.then(|| format!("run {} claims a workflow id with a later event", run.run_id))
        })
    }

    /// The run or runs of this append.
    pub fn runs(&self) -> impl Iterator<Item = &RunAppend> {
        std::iter::once(&self.run).chain(self.with.as_deref())
    }
}

impl RunAppend {
    /// Bytes of user data in the events, for batch limits.
    pub fn payload_bytes(&self) -> usize {
        self.events.iter().map(|e| e.body.data_bytes()).sum()
    }
}
