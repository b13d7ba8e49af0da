//! Whether a case counts. One in which nothing happened proves nothing: it is INVALID, not PASS.

use crate::case::{Case, Op, Outcome};
use crate::format::{Demand, EXPECTED, HISTORY, JOURNAL, META, OpKind};

/// Least share of ops that have to be ok, in percent.
const OK_PERCENT_MIN: usize = 60;

/// Why the case does not count; empty when it does.
pub(crate) fn reasons(case: &Case, undecided: u64) -> Vec<String> {
    let mut reasons = Vec::new();
    let files = [
        (META, case.meta.is_some()),
        (HISTORY, case.ops.is_some()),
        (JOURNAL, case.journal.is_some()),
        (EXPECTED, case.expected.is_some()),
    ];
    for (name, _) in files.iter().filter(|(_, there)| !there) {
        reasons.push(format!("no {name}"));
    }
    if case.runs.is_empty() {
        reasons.push("no runs".to_owned());
    }
    if undecided > 0 {
        reasons.push(format!("linearizability is undecided for {undecided} workflow ids"));
    }
    ok_share(case, &mut reasons);
    happened(case, &mut reasons);
    reasons
}

fn ok_share(case: &Case, reasons: &mut Vec<String>) {
    let Some(ops) = &case.ops else { return };
    // A wait for a result that was over before the run was served as well as any.
    // And so was a caller who heard that the run's code does not want the update.
    let served = |op: &&Op| match op.outcome {
        Outcome::Ok => true,
        _ => {
            op.kind == OpKind::Result && op.code() == "OPEN"
                || op.kind.updates() && op.code() == "UPDATE_REJECTED"
        }
    };
    let ok = ops.iter().filter(served).count();
    if ok * 100 < ops.len() * OK_PERCENT_MIN || ops.is_empty() {
        reasons.push(format!("{ok} of {} ops were ok, fewer than {OK_PERCENT_MIN} %", ops.len()));
    }
}

fn happened(case: &Case, reasons: &mut Vec<String>) {
    let Some(meta) = &case.meta else { return };
    for (name, count) in meta.faults.iter().filter(|(_, count)| count.drawn > 0 && count.fired == 0) {
        reasons.push(format!("fault {name} was drawn {} times and never happened", count.drawn));
    }
    for demand in &meta.demands {
        let (count, what) = match demand {
            Demand::Fenced => (meta.refused_fenced, "no write was fenced"),
            Demand::Unknown => (meta.unknown_resolved, "no unknown commit was resolved"),
            Demand::Redelivered => (meta.redelivered, "nothing was delivered twice"),
        };
        if count == 0 {
            reasons.push(what.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::good;
    use crate::format::FaultCount;

    fn invalid(part: &str, change: impl FnOnce(&mut Case)) {
        assert_eq!(reasons(&good(), 0), Vec::<String>::new());
        let mut case = good();
        change(&mut case);
        let found = reasons(&case, 0);
        assert!(found.iter().any(|r| r.contains(part)), "no reason with '{part}': {found:?}");
    }

    #[test]
    fn a_case_in_which_too_little_happened_does_not_count() {
        invalid("fewer than 60 %", |c| {
            c.ops().iter_mut().take(6).for_each(|op| op.outcome = Outcome::Unknown);
        });
        let mut case = good();
        case.ops().iter_mut().take(6).for_each(|op| {
            (op.kind, op.outcome, op.error) =
                (OpKind::Update, Outcome::Fail, "UPDATE_REJECTED: no".to_owned());
        });
        assert_eq!(reasons(&case, 0), Vec::<String>::new(), "whom the code refused was answered");
        invalid("0 of 0 ops", |c| c.ops().clear());
        invalid("fault cut was drawn 2 times and never happened", |c| {
            c.meta().faults.insert("cut".to_owned(), FaultCount { drawn: 2, fired: 0 });
        });
        invalid("no runs", |c| c.runs.clear());
    }

    #[test]
    fn demands_are_demanded() {
        invalid("no write was fenced", |c| c.meta().demands = vec![Demand::Fenced]);
        invalid("no unknown commit was resolved", |c| c.meta().demands = vec![Demand::Unknown]);
        invalid("nothing was delivered twice", |c| c.meta().demands = vec![Demand::Redelivered]);
        let mut case = good();
        case.meta().demands = vec![Demand::Fenced];
        case.meta().refused_fenced = 1;
        assert_eq!(reasons(&case, 0), Vec::<String>::new());
    }

    #[test]
    fn missing_files_and_undecided_keys_do_not_count() {
        invalid("no meta.json", |c| c.meta = None);
        invalid("no history.ndjson", |c| c.ops = None);
        invalid("no journal.ndjson", |c| c.journal = None);
        invalid("no expected.ndjson", |c| c.expected = None);
        assert!(reasons(&good(), 1).iter().any(|r| r.contains("undecided")));
    }
}
