//! How the core's values travel in Postgres' binary formats.

use bytes::Bytes;
use everstep_core::{RunId, SessionId, Timestamp};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgRow, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{ColumnIndex, Decode, Encode, Postgres, Row, Type};
use uuid::Uuid;

/// 2000-01-01T00:00:00Z, where Postgres counts from, in microseconds since 1970.
const EPOCH_2000_MICROS: i64 = 946_684_800_000_000;

/// A `timestamptz`: whole microseconds on both sides, so nothing is lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instant(pub(crate) Timestamp);

impl Instant {
    pub(crate) const fn from_micros(micros: i64) -> Self {
        Self(Timestamp::from_micros(micros))
    }
}

impl Type<Postgres> for Instant {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz")
    }
}

impl PgHasArrayType for Instant {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz[]")
    }
}

impl Encode<'_, Postgres> for Instant {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let micros = self.0.as_micros().checked_sub(EPOCH_2000_MICROS).ok_or("the instant is out of range")?;
        <i64 as Encode<'_, Postgres>>::encode_by_ref(&micros, buffer)
    }
}

impl Decode<'_, Postgres> for Instant {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        if value.format() != PgValueFormat::Binary {
            return Err("expected a binary timestamptz".into());
        }
        let bytes: [u8; 8] = value.as_bytes()?.try_into().map_err(|_| "a timestamptz has 8 bytes")?;
        let micros = i64::from_be_bytes(bytes);
        let since_1970 =
            micros.checked_add(EPOCH_2000_MICROS).ok_or("the instant is out of the range of a timestamp")?;
        Ok(Self::from_micros(since_1970))
    }
}

/// A `bytea`.
#[derive(Clone, Debug)]
pub(crate) struct Blob(pub(crate) Bytes);

impl Type<Postgres> for Blob {
    fn type_info() -> PgTypeInfo {
        <[u8] as Type<Postgres>>::type_info()
    }
}

impl PgHasArrayType for Blob {
    fn array_type_info() -> PgTypeInfo {
        <[u8] as PgHasArrayType>::array_type_info()
    }
}

impl Encode<'_, Postgres> for Blob {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }
}

/// Reads one column, turning any mismatch into a decoding error.
pub(crate) fn get<'r, T, I>(row: &'r PgRow, column: I) -> Result<T, sqlx::Error>
where
    T: Decode<'r, Postgres> + Type<Postgres>,
    I: ColumnIndex<PgRow>,
{
    row.try_get(column)
}

/// Reads a run id.
pub(crate) fn run_id(row: &PgRow, column: &str) -> Result<RunId, sqlx::Error> {
    get::<Uuid, _>(row, column).map(RunId::from_uuid)
}

/// Reads a session id.
pub(crate) fn session_id(row: &PgRow, column: &str) -> Result<SessionId, sqlx::Error> {
    get::<Uuid, _>(row, column).map(SessionId::from_uuid)
}

/// Reads an instant.
pub(crate) fn instant(row: &PgRow, column: &str) -> Result<Timestamp, sqlx::Error> {
    get::<Instant, _>(row, column).map(|i| i.0)
}

/// A stored number as the core's type, or a decoding error that names the column.
pub(crate) fn number<T, U>(value: T, column: &'static str) -> Result<U, sqlx::Error>
where
    U: TryFrom<T>,
{
    U::try_from(value).map_err(|_| sqlx::Error::Decode(format!("{column} is out of range").into()))
}

/// A limit as Postgres takes it.
pub(crate) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A seq as Postgres keeps it. No history comes near the end of the range.
pub(crate) fn seq(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

/// A duration as Postgres takes it, in microseconds.
pub(crate) fn micros(duration: everstep_core::Duration) -> i64 {
    // 100 years, so that adding it to any clock stays inside a timestamptz.
    const MAX: u64 = 100 * 366 * 24 * 3_600 * 1_000_000;
    i64::try_from(duration.as_micros().min(MAX)).unwrap_or(i64::MAX)
}
