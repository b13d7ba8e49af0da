//! The `.history` file: a header, then the events of one run, each a message behind its length. It is exact, which
//! the JSON export is not: times, bytes and the seed come back as they were.

use everstep_core::{Event, EventBody, RunId, Timestamp};
use prost::Message;

use crate::history::{Event as WireEvent, HistoryHeader};
use crate::wire::{decode_event, encode_event, encode_timestamp, parse_id};
use crate::{InvalidKind, InvalidMessage};

/// The only layout so far.
const FORMAT: u32 = 1;

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    /// The run.
    pub run_id: RunId,
    /// Its events, from the first one on.
    pub events: Vec<Event>,
}

/// How a file begins: which run, how many events, and when it was written (`None` where time is virtual).
pub fn header(run_id: RunId, namespace: &str, events: u64, exported_at: Option<Timestamp>) -> Vec<u8> {
    let header = HistoryHeader {
        format: FORMAT,
        run_id: run_id.to_string(),
        namespace: namespace.to_owned(),
        exported_at: exported_at.map(encode_timestamp),
        everstep_version: env!("CARGO_PKG_VERSION").to_owned(),
        events,
    };
    header.encode_length_delimited_to_vec()
}

/// A whole file.
pub fn write(run_id: RunId, events: &[Event]) -> Vec<u8> {
    let namespace = match events.first().map(|event| &event.body) {
        Some(EventBody::RunStarted(start)) => start.namespace.as_str(),
        _ => "",
    };
    let mut data = header(run_id, namespace, events.len() as u64, None);
    for event in events {
        data.extend(encode_event(event, false).encode_length_delimited_to_vec());
    }
    data
}

/// Reads a whole file. Whether the events are a history that a run can have is not looked at.
///
/// # Errors
/// [`InvalidMessage`] that names the place.
pub fn read(data: &[u8]) -> Result<HistoryFile, InvalidMessage> {
    let invalid = |field: &str, problem: String| InvalidMessage::new(InvalidKind::Value, field, problem);
    let mut rest = data;
    let header = HistoryHeader::decode_length_delimited(&mut rest)
        .map_err(|e| invalid("header", format!("cannot be read, so this is no history file: {e}")))?;
    if header.format != FORMAT {
        let problem = format!("says layout {}, which is not known to this version", header.format);
        return Err(invalid("header", problem));
    }
    let run_id = parse_id("run_id", &header.run_id).map_err(|e| e.within("header"))?;
    let mut events = Vec::new();
    while !rest.is_empty() {
        let field = format!("event {}", events.len() + 1);
        let event = WireEvent::decode_length_delimited(&mut rest)
            .map_err(|e| invalid(&field, format!("cannot be read: {e}")))?;
        let decoded = decode_event(event).map_err(|e| e.within(&field))?;
        if decoded.payload_omitted {
            return Err(invalid(&field, "has no payload: it was left out".to_owned()));
        }
        events.push(decoded.event);
    }
    let found = events.len() as u64;
    if header.events != 0 && header.events != found {
        let problem =
            format!("says that {} events follow, and there are {found}: the file was cut", header.events);
        return Err(invalid("header", problem));
    }
    Ok(HistoryFile { run_id, events })
}
