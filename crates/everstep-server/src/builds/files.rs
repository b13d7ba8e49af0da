//! Histories that a caller sends: gathered piece by piece, one file after the other.

use std::sync::Arc;
use std::time::Duration;

use everstep_core::Run;
use everstep_proto::{api, file};
use futures::{Stream, StreamExt};
use tonic::Status;

use super::check::Subject;
use crate::check::Check;
use crate::{reason, status};

/// Largest file: a history is stopped at 50 MiB of payloads and 51,200 events.
const FILE_BYTES_MAX: usize = 128 << 20;

/// Longest name of a file; it comes back with the answer.
const LABEL_BYTES_MAX: usize = 4_096;

/// How long a caller may be silent between two messages: it has one of the few places for callers.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The files of one caller.
pub(super) struct Files<S> {
    inbound: S,
}

impl<S> Files<S>
where
    S: Stream<Item = Result<api::CheckHistoriesRequest, Status>> + Unpin,
{
    pub(super) fn new(inbound: S) -> Self {
        Self { inbound }
    }

    /// The next file, or `None` when the caller has sent its last one.
    pub(super) async fn next(&mut self) -> Result<Option<Subject>, Status> {
        let mut gathered = Gathered::default();
        loop {
            let piece = tokio::time::timeout(SILENCE_MAX, self.inbound.next()).await;
            let piece = piece.map_err(|_| silent(&gathered.label))?.transpose();
            let Some(piece) = piece.map_err(|s| status::of_framework(&s).unwrap_or(s))? else {
                return match gathered.data.is_empty() {
                    true => Ok(None),
                    false => Err(invalid(&gathered.label, "the stream ended within it")),
                };
            };
            if gathered.add(piece)? {
                return read(&gathered.label, &gathered.data).map(Some);
            }
        }
    }
}

#[derive(Default)]
struct Gathered {
    label: String,
    data: Vec<u8>,
}

impl Gathered {
    /// Adds a piece; true when it was the last one.
    fn add(&mut self, piece: api::CheckHistoriesRequest) -> Result<bool, Status> {
        let api::CheckHistoriesRequest {
            namespace,
            build_id,
            sample,
            workflow_types,
            open_only,
            label,
            data,
            last,
        } = piece;
        let mut check = Check::default();
        for (field, given) in [
            ("namespace", !namespace.is_empty()),
            ("build_id", !build_id.is_empty()),
            ("sample", sample > 0),
            ("workflow_types", !workflow_types.is_empty()),
            ("open_only", open_only),
        ] {
            if given {
                check.refuse(field, reason::INVALID_ARGUMENT, "may only be in the first message");
            }
        }
        let label = check.text("label", label, LABEL_BYTES_MAX);
        check.finish()?;
        if self.label.is_empty() {
            self.label = label;
        } else if !label.is_empty() && label != self.label {
            return Err(invalid(&self.label, "its last piece did not say so"));
        }
        if self.data.len() + data.len() > FILE_BYTES_MAX {
            let message = format!("{}: is larger than {FILE_BYTES_MAX} bytes", status::echo(&self.label));
            return Err(status::of(reason::LIMIT_EXCEEDED, message));
        }
        self.data.extend_from_slice(&data);
        Ok(last)
    }
}

/// Reads a whole file: its form, and that it is the history of a run from the beginning.
fn read(label: &str, data: &[u8]) -> Result<Subject, Status> {
    let file = file::read(data).map_err(|e| invalid(label, &e.to_string()))?;
    match Run::fold(file.run_id, &file.events) {
        Ok(Some(_)) => {}
        Ok(None) => return Err(invalid(label, "it has no events")),
        Err(error) => return Err(invalid(label, &error.to_string())),
    }
    Ok(Subject { label: label.to_owned(), run_id: file.run_id, events: Arc::new(file.events) })
}

fn silent(label: &str) -> Status {
    let seconds = SILENCE_MAX.as_secs();
    let what = match label {
        "" => "what is to be checked".to_owned(),
        label => format!("the rest of {}", status::echo(label)),
    };
    status::of(reason::CALLER_SILENT, format!("{what} did not come within {seconds} s"))
}

fn invalid(label: &str, problem: &str) -> Status {
    let message = format!("{}: {problem}", status::echo(label));
    status::with_metadata(reason::INVALID_HISTORY, message, [("label", status::echo(label))])
}

#[cfg(test)]
mod tests;
