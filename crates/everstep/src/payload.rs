//! Values of users as payloads: JSON.

use everstep_core::{Payload, limits};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Encodes a value as a JSON payload.
///
/// # Errors
/// What serde says: a map with keys that are not strings, or a custom `Serialize` that fails.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Payload, serde_json::Error> {
    serde_json::to_vec(value).map(Payload::json)
}

/// As [`encode`], and refuses what the server would refuse; gives the kind of failure and its text.
pub(crate) fn encode_checked<T: Serialize + ?Sized>(value: &T) -> Result<Payload, (&'static str, String)> {
    let payload = encode(value).map_err(|e| ("Payload", e.to_string()))?;
    let (size, limit) = (payload.data.len(), limits::PAYLOAD_BYTES_MAX);
    if size > limit {
        return Err(("PayloadTooLarge", format!("the value takes {size} bytes, the limit is {limit}")));
    }
    Ok(payload)
}

/// Decodes a JSON payload. An empty payload reads as JSON `null`.
///
/// # Errors
/// What serde says: the bytes are not JSON, or not of this type.
pub fn decode<T: DeserializeOwned>(payload: &Payload) -> Result<T, serde_json::Error> {
    if payload.is_none() {
        return serde_json::from_slice(b"null");
    }
    serde_json::from_slice(&payload.data)
}
