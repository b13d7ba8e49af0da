//! The wire form of a history: a header, then the events, each behind its length.

use everstep_core::{EventBody, RunId};
use everstep_proto::{history as proto, wire};
use prost::Message;

use super::{History, Unreadable};

/// The only layout so far.
const FORMAT: u32 = 1;

pub(super) fn write(history: &History) -> Vec<u8> {
    let namespace = match history.events.first().map(|event| &event.body) {
        Some(EventBody::RunStarted(start)) => start.namespace.clone(),
        _ => String::new(),
    };
    let header = proto::HistoryHeader {
        format: FORMAT,
        run_id: history.run_id.to_string(),
        namespace,
        exported_at: None,
        everstep_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut data = header.encode_length_delimited_to_vec();
    for event in &history.events {
        data.extend(wire::encode_event(event, false).encode_length_delimited_to_vec());
    }
    data
}

pub(super) fn read(data: &[u8]) -> Result<History, Unreadable> {
    let mut rest = data;
    let header = proto::HistoryHeader::decode_length_delimited(&mut rest)
        .map_err(|e| Unreadable::new(format!("neither an export nor a history file: {e}")))?;
    if header.format != FORMAT {
        return Err(Unreadable::new(format!("layout {} is not known to this version", header.format)));
    }
    let run_id: RunId =
        header.run_id.parse().map_err(|_| Unreadable::new(format!("'{}' is no run id", header.run_id)))?;
    let mut events = Vec::new();
    while !rest.is_empty() {
        let number = events.len() + 1;
        let event = proto::Event::decode_length_delimited(&mut rest)
            .map_err(|e| Unreadable::new(format!("event {number}: {e}")))?;
        let decoded =
            wire::decode_event(event).map_err(|e| Unreadable::new(format!("event {number}: {e}")))?;
        if decoded.payload_omitted {
            return Err(Unreadable::new(format!("event {number}: its payload was left out")));
        }
        events.push(decoded.event);
    }
    History::from_events(run_id, events)
}
