//! Histories that a caller sends: gathered piece by piece, one file after the other.

use std::sync::Arc;

use everstep_core::Run;
use everstep_proto::{api, file};
use tonic::{Status, Streaming};

use super::check::Subject;
use crate::{reason, status};

/// Largest file: a history is stopped at 50 MiB of payloads and 51,200 events.
const FILE_BYTES_MAX: usize = 128 << 20;

/// The files of one caller.
pub(super) struct Files {
    inbound: Streaming<api::CheckHistoriesRequest>,
}

impl Files {
    pub(super) fn new(inbound: Streaming<api::CheckHistoriesRequest>) -> Self {
        Self { inbound }
    }

    /// The next file, or `None` when the caller has sent its last one.
    pub(super) async fn next(&mut self) -> Result<Option<Subject>, Status> {
        let mut gathered = Gathered::default();
        loop {
            let piece = self.inbound.message().await.map_err(|s| status::of_framework(&s).unwrap_or(s))?;
            let Some(piece) = piece else {
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
        let api::CheckHistoriesRequest { label, data, last, .. } = piece;
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

fn invalid(label: &str, problem: &str) -> Status {
    let message = format!("{}: {problem}", status::echo(label));
    status::with_metadata(reason::INVALID_HISTORY, message, [("label", status::echo(label))])
}

#[cfg(test)]
mod tests;
