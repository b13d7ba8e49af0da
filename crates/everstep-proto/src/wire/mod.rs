//! Conversions between wire messages and the core's types.
//!
//! Encoding cannot fail. Decoding takes what a stranger sent and answers with an [`InvalidMessage`] that
//! names the field. Sizes, names and contradictions are the core's rules and are not repeated here.

mod commit;
mod doubt;
mod event;
mod invalid;
mod run;
mod time;
mod value;

#[cfg(test)]
mod tests;

pub use commit::{decode_commit, encode_commit};
pub use doubt::{decode_doubt_policy, decode_resolution, encode_doubt_policy};
pub use event::{DecodedEvent, decode_blocked, decode_event, encode_blocked, encode_event};
pub use invalid::{InvalidKind, InvalidMessage};
pub use run::{
    conflict_policy, decode_run_status, encode_run, encode_run_status, encode_start_run, reuse_policy,
};
pub use time::{decode_duration, decode_timestamp, encode_duration, encode_timestamp};
pub use value::{
    FAILURE_DEPTH_MAX, decode_failure, decode_payload, decode_retry_policy, decode_worker_info,
    encode_failure, encode_payload, encode_retry_policy, encode_worker_info, parse_id,
};
