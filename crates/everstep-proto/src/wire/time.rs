//! Durations and instants, with the ranges that the log can hold.

use everstep_core::{Duration, Timestamp, limits};

use super::{InvalidKind, InvalidMessage};

const NANOS_PER_SEC: i32 = 1_000_000_000;
/// 0001-01-01T00:00:00Z, the first instant that a `google.protobuf.Timestamp` may hold.
const FIRST_SECOND: i64 = -62_135_596_800;

/// A duration as the wire has it.
pub fn encode_duration(duration: Duration) -> prost_types::Duration {
    let micros = duration.as_micros();
    prost_types::Duration {
        // Below 2^64 / 10^6, so both fit.
        seconds: i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(micros % 1_000_000 * 1_000).unwrap_or(0),
    }
}

/// Reads a duration; a fraction of a microsecond is rounded up, so that a timer is never early.
///
/// # Errors
/// [`InvalidKind::Duration`] when it is negative, its parts contradict each other, or it is longer than 100
/// years.
pub fn decode_duration(field: &str, wire: prost_types::Duration) -> Result<Duration, InvalidMessage> {
    let prost_types::Duration { seconds, nanos } = wire;
    let bad = |problem| Err(InvalidMessage::new(InvalidKind::Duration, field, problem));
    let (Ok(whole), Ok(fraction)) = (u64::try_from(seconds), u32::try_from(nanos)) else {
        return bad("must not be negative");
    };
    if nanos >= NANOS_PER_SEC {
        return bad("must have less than 1,000,000,000 nanoseconds");
    }
    let micros = whole.saturating_mul(1_000_000).saturating_add(u64::from(fraction.div_ceil(1_000)));
    let duration = Duration::from_micros(micros);
    if duration > limits::DURATION_MAX { bad("must not be longer than 100 years") } else { Ok(duration) }
}

/// An instant as the wire has it.
pub fn encode_timestamp(at: Timestamp) -> prost_types::Timestamp {
    let micros = at.as_micros();
    prost_types::Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or(0),
    }
}

/// Reads an instant; a fraction of a microsecond is dropped.
///
/// # Errors
/// [`InvalidKind::Timestamp`] when it is not within the years 1 to 9999.
pub fn decode_timestamp(field: &str, wire: prost_types::Timestamp) -> Result<Timestamp, InvalidMessage> {
    let prost_types::Timestamp { seconds, nanos } = wire;
    let bad = |problem| Err(InvalidMessage::new(InvalidKind::Timestamp, field, problem));
    if !(0..NANOS_PER_SEC).contains(&nanos) {
        return bad("must have 0 to 999,999,999 nanoseconds");
    }
    if seconds < FIRST_SECOND || seconds > Timestamp::MAX.as_micros() / 1_000_000 {
        return bad("must be within the years 1 to 9999");
    }
    Ok(Timestamp::from_micros(seconds * 1_000_000 + i64::from(nanos / 1_000)))
}
