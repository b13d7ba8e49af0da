//! Once everything is healed, clients are served again: the last ops of each are answered.

use std::collections::BTreeMap;

use crate::case::{Case, Op, Outcome};
use crate::verdict::Check;

/// How many ops of each client.
const LAST: usize = 5;

/// Refusals that are answers: they say how the run stands, not how the server does.
const ANSWERS: [&str; 8] = [
    "OPEN",
    "RUN_CLOSED",
    "RUN_ALREADY_EXISTS",
    "RUN_NOT_FOUND",
    "IDEMPOTENCY_MISMATCH",
    "UPDATE_REJECTED",
    "UPDATE_ABANDONED",
    "STEP_NOT_IN_DOUBT",
];

/// True for an op that the server dealt with.
pub(crate) fn answered(op: &Op) -> bool {
    match op.outcome {
        Outcome::Ok => true,
        Outcome::Fail => ANSWERS.contains(&op.code()),
        Outcome::Unknown => false,
    }
}

/// The last five ops of each client that were invoked after the heal.
pub(crate) fn check(case: &Case) -> Check {
    let mut check = Check::new("tail is ok", &["INV-24"]);
    let Some(ops) = &case.ops else {
        check.note("no client history");
        return check;
    };
    let Some(healed) = case.meta.as_ref().and_then(|m| m.healed_mono_ns) else {
        check.note("nothing was healed: the end is not judged");
        return check;
    };
    let mut clients: BTreeMap<u32, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        let of = clients.entry(op.process).or_default();
        if op.invoked >= healed {
            of.push(op);
        }
    }
    for (client, mut ops) in clients {
        ops.sort_unstable_by_key(|op| op.invoked);
        if ops.len() < LAST {
            check.note(format!("client {client}: only {} ops after the heal", ops.len()));
        }
        for op in ops.iter().rev().take(LAST) {
            check.looked();
            if answered(op) {
                continue;
            }
            let after = op.invoked.saturating_sub(healed) / 1_000_000;
            let how = if op.error.is_empty() { "no reply" } else { &op.error };
            let what = format!("{} {}", op.kind.as_str(), op.workflow_id);
            check.problem(format!("client {client}: {what}, {after} ms after the heal: {how}"));
        }
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::good;

    /// The good case, healed before anything began, and changed.
    fn judge(change: impl FnOnce(&mut Case)) -> Check {
        let mut case = good();
        case.meta().healed_mono_ns = Some(1);
        change(&mut case);
        check(&case)
    }

    #[test]
    fn answered_ops_pass() {
        let check = judge(|_| {});
        assert!(check.ok && check.checked == 13, "{check:?}");
        let refused = judge(|c| {
            (c.ops()[3].outcome, c.ops()[3].error) = (Outcome::Fail, "RUN_CLOSED: it is".to_owned());
        });
        assert!(refused.ok, "{refused:?}");
        let rejected = judge(|c| {
            (c.ops()[3].outcome, c.ops()[3].error) = (Outcome::Fail, "UPDATE_REJECTED: no".to_owned());
        });
        assert!(rejected.ok, "{rejected:?}");
    }

    #[test]
    fn ops_without_an_answer_are_found() {
        let check = judge(|c| c.ops()[4].outcome = Outcome::Unknown);
        assert!(check.problems.iter().any(|p| p.contains("no reply")), "{check:?}");
        let check = judge(|c| {
            (c.ops()[4].outcome, c.ops()[4].error) = (Outcome::Fail, "UNAVAILABLE: refused".to_owned());
        });
        assert!(check.problems.iter().any(|p| p.contains("UNAVAILABLE")), "{check:?}");
    }

    #[test]
    fn ops_before_the_heal_and_before_the_last_five_do_not_count() {
        let before = judge(|c| {
            c.ops()[4].outcome = Outcome::Unknown;
            c.meta().healed_mono_ns = Some(u64::MAX);
        });
        assert!(before.ok && !before.notes.is_empty(), "{before:?}");
        let sixth = judge(|c| {
            c.ops()[0].outcome = Outcome::Unknown;
            let again = c.ops()[4].clone();
            c.ops().push(Op { invoked: again.invoked + 1_000_000, ..again });
        });
        assert!(sixth.ok, "{sixth:?}");
    }

    #[test]
    fn without_a_heal_a_note_says_so() {
        let mut case = good();
        case.meta().healed_mono_ns = None;
        let check = check(&case);
        assert!(check.ok && check.checked == 0 && !check.notes.is_empty(), "{check:?}");
    }
}
