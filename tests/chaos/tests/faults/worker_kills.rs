//! F02: a worker dies before an effect, between the effect and its report, and behind the report.

use everstep_chaos::case::{Case, Options};
use everstep_chaos::pace;
use everstep_chaos::topology::StoreKind;

use crate::support::{LONG, drop_case, journal, layout, passes};

/// Where each worker aborts, and at which of its steps.
const POINTS: [(&str, &str, u32); 3] = [
    ("worker-1", "worker.before_effect", 17),
    ("worker-2", "worker.after_effect", 23),
    ("worker-3", "worker.reported", 29),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_around_an_effect_loses_and_doubles_no_record() -> anyhow::Result<()> {
    let mut layout = layout("f02", 103, StoreKind::Sqlite);
    let folder = layout.case.clone();
    for (worker, point, at) in POINTS {
        let log = folder.join(format!("{worker}.points")).display().to_string();
        let plan = vec![
            ("EVERSTEP_FAILPOINTS".to_owned(), format!("{point}=abort@{at}")),
            ("EVERSTEP_FAILPOINTS_LOG".to_owned(), log),
        ];
        layout.environments.insert(worker.to_owned(), plan);
        layout.may_end.insert(worker.to_owned());
    }
    let case = Case::start(Options::of_fault(layout)).await?;
    let died = || case.topology().workers.iter().all(|worker| !worker.process.lives().is_empty());
    pace::wait_for("each worker dies at its point", LONG, || Ok(died())).await?;
    for (worker, point, at) in POINTS {
        let hits = std::fs::read_to_string(folder.join(format!("{worker}.points")))?;
        let fired = hits.lines().any(|hit| hit == format!("{point} {at} Abort"));
        assert!(fired, "{worker} never died at {point}");
        case.count(point, fired);
    }
    let verdict = passes(case).await?;
    // What was cut off between effect and report ran again, which only an idempotency key can hide.
    assert!(verdict.totals["re_executions"] > 0, "{:?}", verdict.totals);
    let begun = journal(&folder)?;
    assert!(begun.iter().any(|entry| entry.epoch > 1), "no run went to another worker");
    drop_case(&folder)
}
