//! How the clients' monotonic clock and the database's stand to each other, as far as the case shows it.
//!
//! A run's first event was written between the invoke and the reply of the start that was acknowledged. Each
//! such start gives an interval for the difference of the clocks; all of them together give their
//! intersection. It is empty when a clock was set during the case.

use std::collections::HashMap;

use everstep_core::EventBody;

use crate::case::{Case, Op, Outcome};

/// Database time minus monotonic time, in microseconds: at least, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offset {
    pub(crate) least: i64,
    pub(crate) most: i64,
}

impl Offset {
    /// The earliest database time that the monotonic instant can be.
    pub(crate) fn earliest_us(self, mono_ns: u64) -> i64 {
        micros(mono_ns) + self.least
    }

    /// The latest one.
    pub(crate) fn latest_us(self, mono_ns: u64) -> i64 {
        micros(mono_ns) + self.most
    }
}

fn micros(mono_ns: u64) -> i64 {
    i64::try_from(mono_ns / 1_000).unwrap_or(i64::MAX / 2)
}

/// The difference of the clocks; `None` without an acknowledged start, or when the starts contradict each
/// other.
pub(crate) fn offset(case: &Case) -> Option<Offset> {
    let starts = || case.ops.iter().flatten().filter(|op| op.kind.starts());
    let mut times: HashMap<Option<&str>, u32> = HashMap::new();
    for op in starts() {
        *times.entry(op.request_id.as_deref()).or_default() += 1;
    }
    let mut found: Option<Offset> = None;
    // An answer to a repeated request says nothing about when the first one was carried out.
    for op in starts().filter(|op| times.get(&op.request_id.as_deref()) == Some(&1)) {
        let Some(interval) = interval(case, op) else { continue };
        found = Some(match found {
            None => interval,
            Some(o) => Offset { least: o.least.max(interval.least), most: o.most.min(interval.most) },
        });
    }
    found.filter(|o| o.least <= o.most)
}

fn interval(case: &Case, op: &Op) -> Option<Offset> {
    if op.outcome != Outcome::Ok {
        return None;
    }
    let event = case.runs.get(&op.run_id.as_ref()?.parse().ok()?)?.events.first()?;
    let EventBody::RunStarted(start) = &event.body else { return None };
    if op.request_id.as_deref() != Some(start.request_id.as_str()) {
        return None;
    }
    let at = event.at.as_micros();
    // The reply's microsecond is cut off, so it may lie almost one later.
    Some(Offset { least: at - micros(op.replied?) - 1, most: at - micros(op.invoked) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{BASE_US, good, mono};

    #[test]
    fn acknowledged_starts_bound_the_difference() {
        let Some(offset) = offset(&good()) else { panic!("no offset") };
        let true_difference = BASE_US - (mono(0) / 1_000) as i64;
        assert!(offset.least <= true_difference && true_difference <= offset.most, "{offset:?}");
        assert!(offset.most - offset.least < 1_000, "{offset:?}");
    }

    #[test]
    fn starts_that_contradict_each_other_say_nothing() {
        let mut case = good();
        case.second().events[0].at = everstep_core::Timestamp::from_micros(BASE_US + 10_000_000);
        assert_eq!(offset(&case), None);
    }
}
