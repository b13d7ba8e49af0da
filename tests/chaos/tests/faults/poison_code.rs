//! F33: workflow code that panics, never comes back, or takes all memory.

use std::time::Duration;

use everstep_chaos::caller::{Ask, Caller};
use everstep_chaos::case::{Case, Options};
use everstep_chaos::history::Reply;
use everstep_chaos::pace;
use everstep_chaos::topology::StoreKind;
use everstep_chaos::worker::POISON;
use everstep_checker::format::{ExpectedOutcome, OpKind};
use serde_json::json;

use crate::support::{LONG, drop_case, layout, passes};

/// Number of the client that starts the poison.
const CLIENT: u32 = 90;

async fn ask(caller: &mut Caller, op: OpKind, ask: &Ask) -> anyhow::Result<Option<serde_json::Value>> {
    match caller.op(op, ask).await? {
        Reply::Ok(value) => Ok(value),
        other => anyhow::bail!("{} of {}: {other:?}", op.as_str(), ask.workflow_id),
    }
}

fn of(kind: &str) -> Ask {
    Ask {
        workflow_id: format!("poison/{kind}"),
        request_id: Some(format!("start-{kind}")),
        name: POISON.to_owned(),
        input: json!(kind),
        ..Ask::default()
    }
}

async fn terminated(caller: &mut Caller, kind: &str) -> anyhow::Result<()> {
    let stop = Ask { request_id: Some(format!("stop-{kind}")), ..of(kind) };
    ask(caller, OpKind::Terminate, &stop).await?;
    Ok(())
}

/// Waits until the run is blocked, and says why.
async fn blocked(case: &Case, caller: &mut Caller, kind: &str) -> anyhow::Result<()> {
    let began = tokio::time::Instant::now();
    loop {
        let described = ask(caller, OpKind::Describe, &of(kind)).await?.unwrap_or_default();
        if described["status"] == "blocked" {
            return Ok(());
        }
        anyhow::ensure!(began.elapsed() < LONG, "{kind} is not blocked within {LONG:?}: {described}");
        // The rest goes on meanwhile.
        case.wait_moved(10, LONG).await?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_is_blocked_and_others_go_on() -> anyhow::Result<()> {
    let mut layout = layout("f33", 133, StoreKind::Sqlite);
    layout.lease = Duration::from_secs(1);
    for worker in 1..=layout.workers {
        // The one that takes all memory takes its process with it.
        layout.may_end.insert(format!("worker-{worker}"));
    }
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    let mut caller = case.load().caller(CLIENT)?;
    for kind in ["panic", "huge", "spin"] {
        case.load().expect(&of(kind).workflow_id, ExpectedOutcome::Terminated)?;
        ask(&mut caller, OpKind::Start, &of(kind)).await?;
        if kind == "spin" {
            // It says nothing, and its worker goes on with what else it has: nobody can tell it from slow code.
            case.wait_moved(40, LONG).await?;
            pace::hold(case.topology().layout.lease * 2).await;
            case.wait_moved(20, LONG).await?;
        } else {
            blocked(&case, &mut caller, kind).await?;
        }
        terminated(&mut caller, kind).await?;
        case.count(&format!("poison_{kind}"), true);
    }
    let ends: usize = case.topology().workers.iter().map(|worker| worker.process.lives().len()).sum();
    assert!(ends >= 5, "five workers in a row get nowhere before a run is blocked: {ends}");
    // The thread that spins is lost to its worker, which can only be killed.
    for worker in &case.topology().workers {
        worker.process.kill_9().await?;
        worker.process.want_up();
    }
    passes(case).await?;
    drop_case(&folder)
}
