//! Conversions between wire messages and the core's types.
//!
//! Encoding cannot fail. Decoding takes what a stranger sent and answers with an [`InvalidMessage`] that
//! names the field. Sizes, names and contradictions are the core's rules and are not repeated here.

mod child;
mod commit;
mod doubt;
mod event;
mod invalid;
mod notes;
mod queued;
mod run;
mod steps;
mod succession;
mod time;
mod update;
mod value;

#[cfg(test)]
mod tests;

pub use commit::{decode_commit, encode_commit};
pub use doubt::{decode_doubt_policy, encode_doubt_policy};
pub use event::{DecodedEvent, decode_blocked, decode_event, encode_blocked, encode_event};
pub use invalid::{InvalidKind, InvalidMessage};
pub use notes::{
    WireNotes, decode_attribute, decode_attribute_type, decode_notes, encode_attribute,
    encode_attribute_type, encode_notes,
};
pub use run::{
    conflict_policy, decode_run_status, encode_link, encode_run, encode_run_status, encode_start_run,
    reuse_policy,
};
pub use succession::{decode_recorded_policy, encode_recorded_policy};
pub use time::{decode_duration, decode_timestamp, encode_duration, encode_timestamp};
pub use value::{
    FAILURE_DEPTH_MAX, decode_failure, decode_payload, decode_retry_policy, decode_worker_info,
    encode_failure, encode_payload, encode_retry_policy, encode_worker_info, parse_id,
};
