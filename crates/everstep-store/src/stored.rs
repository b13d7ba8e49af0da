//! What stands in the tables of every SQL store, as values: the same columns mean the same wherever they are kept.

use everstep_core::{AttributeType, EventBody, RunId, RunStarted};
use everstep_proto::row::EventRow;
use uuid::Uuid;

use crate::{BeatAnswer, Error, QueueLimits};

/// A search attribute that a namespace declares, of its name and the word of its type.
///
/// # Errors
/// [`Error::Corrupt`] when nobody writes that word.
pub fn stored_attribute((name, kind): (String, String)) -> Result<(String, AttributeType), Error> {
    let unknown = || Error::Corrupt(format!("search attribute {name} has the type {kind:?}"));
    AttributeType::parse(&kind).ok_or_else(unknown).map(|kind| (name.clone(), kind))
}

/// How a run began, of the attrs of its first event: the input stays in the log.
///
/// # Errors
/// [`Error::Corrupt`] when they are not those of a start.
pub fn stored_start(run: RunId, attrs: Option<String>) -> Result<RunStarted, Error> {
    let row = EventRow {
        run_id: run.uuid(),
        seq: 1,
        epoch: 0,
        command_id: Uuid::nil(),
        kind: "RunStarted".to_owned(),
        step: None,
        step_id: None,
        attempt: None,
        at_micros: 0,
        actor: "system".to_owned(),
        attrs,
        encoding: None,
        payload: None,
    };
    match row.decode().map(|event| event.body) {
        Ok(EventBody::RunStarted(start)) => Ok(*start),
        Ok(_) => Err(Error::Corrupt(format!("run {run} does not begin with its start"))),
        Err(error) => Err(Error::Corrupt(format!("run {run}: {error}"))),
    }
}

/// The number of a queued step, or of its attempt.
///
/// # Errors
/// [`Error::Corrupt`] when it is none.
pub fn stored_number(what: &str, number: i64) -> Result<u32, Error> {
    u32::try_from(number).map_err(|_| Error::Corrupt(format!("a queued step has the {what} {number}")))
}

/// What a sign of life found: whether the step was canceled, if its claim was there.
pub fn stored_beat(canceled: Option<bool>) -> BeatAnswer {
    match canceled {
        None => BeatAnswer::Gone,
        Some(true) => BeatAnswer::Canceled,
        Some(false) => BeatAnswer::Going,
    }
}

/// The limits of a queue.
pub fn stored_limits(max_running: Option<i64>, max_per_second: Option<f64>, burst: i64) -> QueueLimits {
    QueueLimits {
        max_running: max_running.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
        max_per_second,
        burst: u32::try_from(burst).unwrap_or(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_writes_is_corrupt() {
        assert!(matches!(stored_attribute(("a".into(), "word".into())), Err(Error::Corrupt(_))));
        assert!(stored_attribute(("a".into(), "keyword".into())).is_ok());
        let run = RunId::from_uuid(Uuid::from_u128(7));
        assert!(matches!(stored_start(run, Some("{}".into())), Err(Error::Corrupt(_))));
        assert!(matches!(stored_start(run, None), Err(Error::Corrupt(_))));
        for number in [-1, i64::from(u32::MAX) + 1] {
            assert!(matches!(stored_number("attempt", number), Err(Error::Corrupt(_))), "{number}");
        }
        assert_eq!(stored_number("attempt", 7).ok(), Some(7));
    }
}
