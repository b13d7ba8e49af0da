//! INV-30: if a signal was acknowledged before another was sent, it stands before it in the log.

use std::collections::HashMap;

use everstep_core::{EventBody, RunId};

use crate::case::{Case, Op, Outcome, Tables};
use crate::verdict::Check;

/// First time sent and first time acknowledged, by workflow id and signal id.
type Times<'a> = HashMap<(&'a str, &'a str), (u64, Option<u64>)>;

/// Compares the log's order with real time.
pub(crate) fn check(case: &Case) -> Check {
    let mut check = Check::new("order of signals", &["INV-30"]);
    let Some(ops) = &case.ops else {
        check.note("no client history");
        return check;
    };
    let times = times(ops);
    for (id, tables) in &case.runs {
        run(*id, tables, &times, &mut check);
    }
    check
}

fn times(ops: &[Op]) -> Times<'_> {
    let mut times = Times::new();
    for op in ops.iter().filter(|op| op.kind.signals()) {
        let request = op.request_id.as_deref().unwrap_or_default();
        let (sent, acked) = times.entry((&op.workflow_id, request)).or_insert((op.invoked, None));
        *sent = op.invoked.min(*sent);
        if op.outcome == Outcome::Ok {
            *acked = acked.iter().copied().chain(op.replied).min();
        }
    }
    times
}

/// One pass in the log's order: what comes later must not have been acknowledged before the latest of the
/// earlier ones was even sent.
fn run(id: RunId, tables: &Tables, times: &Times<'_>, check: &mut Check) {
    let mut latest: (u64, &str, u64) = (0, "", 0);
    for event in &tables.events {
        let EventBody::SignalReceived { signal_id, .. } = &event.body else { continue };
        let Some((sent, acked)) = times.get(&(tables.workflow_id(), signal_id.as_str())) else { continue };
        check.looked();
        if let Some(acked) = acked
            && *acked < latest.0
        {
            let (_, other, at) = latest;
            check.problem(format!(
                "run {id}: signal {signal_id} was acknowledged before {other} was sent, and stands behind it: \
                 event {} and event {at}",
                event.seq
            ));
        }
        if *sent > latest.0 {
            latest = (*sent, signal_id, event.seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{SIGNAL_1, SIGNAL_2, broken, good};

    #[test]
    fn order_of_the_log_that_real_time_allows_passes() {
        let check = check(&good());
        assert!(check.ok && check.checked == 2, "{check:?}");
    }

    #[test]
    fn signals_that_stand_the_other_way_round_are_found() {
        broken(check, "signal s1 was acknowledged before s2 was sent", |c| {
            c.first().events.swap(SIGNAL_1, SIGNAL_2);
        });
    }

    #[test]
    fn signals_that_were_sent_at_the_same_time_may_stand_either_way() {
        let mut case = good();
        case.first().events.swap(SIGNAL_1, SIGNAL_2);
        let first = case.ops().iter().find(|op| op.request_id.as_deref() == Some("s1")).map(|op| op.invoked);
        for op in case.ops().iter_mut().filter(|op| op.request_id.as_deref() == Some("s2")) {
            op.invoked = first.unwrap_or_default();
        }
        assert!(check(&case).ok);
    }
}
