//! The wire form of a history, as files have it.

use everstep_proto::file;

use super::{History, Unreadable};

pub(super) fn write(history: &History) -> Vec<u8> {
    file::write(history.run_id, &history.events)
}

pub(super) fn read(data: &[u8]) -> Result<History, Unreadable> {
    let file = file::read(data).map_err(|e| Unreadable::new(e.to_string()))?;
    History::from_events(file.run_id, file.events)
}
