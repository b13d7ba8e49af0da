//! One call: sent again while the server cannot be reached, and its refusal taken apart.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use crate::ClientError;

/// Tries of a call while the server cannot be reached; the pauses between them are about 5 s in all.
const TRIES: u32 = 8;

/// Sends a call until it is answered. The request must be safe to repeat.
pub(super) async fn retrying<T, F, Fut>(call: F) -> Result<T, ClientError>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<Response<T>, Status>>,
{
    let mut tries = 0;
    loop {
        match call().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) if is_passing(&status) && tries + 1 < TRIES => {
                tokio::time::sleep(pause(tries)).await;
                tries += 1;
            }
            Err(status) => return Err(refused(status)),
        }
    }
}

/// 50 ms, doubling, at most 2 s, with up to a quarter off so that many clients do not come at once.
pub(crate) fn pause(tries: u32) -> Duration {
    let full = 50u64 << tries.min(6);
    let full = full.min(2_000);
    let jitter = uuid::Uuid::new_v4().as_u128() as u64 % (full / 4 + 1);
    Duration::from_millis(full - jitter)
}

/// True when the same request may be answered a moment later, by this server or another.
pub(super) fn is_passing(status: &Status) -> bool {
    let told_to_come_again = || status.get_details_retry_info().is_some();
    match status.code() {
        Code::Unavailable => true,
        // Without such a word the server has no room for a while, or never for this request.
        Code::ResourceExhausted if told_to_come_again() => true,
        _ => is_broken(status),
    }
}

/// True when no server has said this: the connection broke, however far the answer had come, or was turned away
/// because there are too many.
fn is_broken(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::ResourceExhausted)
        && status.get_details_error_info().is_none()
}

/// What a status says.
pub(crate) fn refused(status: Status) -> ClientError {
    let details = status.get_error_details();
    let info = details.error_info();
    if is_broken(&status) {
        return ClientError::Unreachable(deepest(&status));
    }
    let violations = details
        .bad_request()
        .map(|b| b.field_violations.iter().map(|v| (v.field.clone(), v.description.clone())).collect())
        .unwrap_or_default();
    ClientError::Refused {
        reason: info.map_or_else(|| format!("{:?}", status.code()), |i| i.reason.clone()),
        message: status.message().to_owned(),
        violations,
        metadata: info
            .map(|i| i.metadata.clone().into_iter().collect::<BTreeMap<_, _>>())
            .unwrap_or_default(),
        code: status.code(),
    }
}

/// The innermost cause, which is what a person needs: "connection refused", not "transport error".
fn deepest(status: &Status) -> String {
    let mut error: &dyn std::error::Error = status;
    while let Some(source) = error.source() {
        error = source;
    }
    if std::ptr::eq(error as *const _ as *const u8, status as *const _ as *const u8) {
        return status.message().to_owned();
    }
    error.to_string()
}
