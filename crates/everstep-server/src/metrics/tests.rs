//! The text form is well formed and holds what was counted.

use super::*;

#[test]
fn what_was_counted_is_shown() {
    let metrics = Metrics::new().unwrap();
    metrics.call("everstep.api.v1.RunService/StartRun", Code::Ok, Duration::from_millis(3));
    metrics.call("everstep.api.v1.RunService/StartRun", Code::NotFound, Duration::from_secs(90));
    metrics.panicked();
    let node = NodeStatus { workers: 3, store_ok: true, healed: 7, ..NodeStatus::default() };
    let upkeep = Upkeep {
        blocked_runs: 5,
        untold: 3,
        oldest_untold: everstep_core::Duration::from_millis(2_500),
        runs_lost: 2,
        wake_violations: 1,
        ..Upkeep::default()
    };
    let text = metrics.render(&node, &upkeep, Some(7)).unwrap();
    let call = |code: &str, rest: &str| {
        format!(
            "rpc_server_call_duration_seconds{rest}rpc_method=\"everstep.api.v1.RunService/StartRun\",\
             rpc_response_status_code=\"{code}\",rpc_system_name=\"grpc\""
        )
    };
    let lines: Vec<&str> = text.lines().collect();
    for expected in [
        "everstep_workers_connected 3",
        "everstep_store_up 1",
        "everstep_sweep_healed_total 7",
        "everstep_steps_in_doubt 7",
    ] {
        assert!(lines.contains(&expected), "{expected} is not in\n{text}");
    }
    for expected in [
        "everstep_runs_blocked 5",
        "everstep_outbox_pending 3",
        "everstep_outbox_oldest_seconds 2.5",
        "everstep_runs_lost_total 2",
        "everstep_invariant_violations{inv=\"25\"} 1",
        "everstep_store_exhausted 0",
        "everstep_rpc_panics_total 1",
    ] {
        assert!(lines.contains(&expected), "{expected} is not in\n{text}");
    }
    assert!(text.contains(&format!("{}}} 1", call("OK", "_count{"))), "{text}");
    assert!(text.contains(&format!("{}}} 1", call("NOT_FOUND", "_count{"))), "{text}");
    for line in lines {
        assert!(
            line.starts_with("# ") || line.rsplit_once(' ').is_some_and(|(_, v)| v.parse::<f64>().is_ok()),
            "{line}"
        );
    }
}

#[test]
fn lateness_is_a_histogram() {
    let mut timer_lateness =
        Lateness { sum: everstep_core::Duration::from_millis(4_050), ..Lateness::default() };
    timer_lateness.counts[0] = 7;
    timer_lateness.counts[2] = 1;
    timer_lateness.counts[LATENESS_MILLIS.len()] = 2;
    let upkeep = Upkeep {
        timer_lateness,
        oldest_task: everstep_core::Duration::from_millis(1_500),
        sweep_lag: Duration::from_millis(250),
        ..Upkeep::default()
    };
    let text = Metrics::new().unwrap().render(&NodeStatus::default(), &upkeep, None).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for expected in [
        "# TYPE everstep_timer_lateness_seconds histogram",
        "everstep_timer_lateness_seconds_bucket{le=\"0.01\"} 7",
        "everstep_timer_lateness_seconds_bucket{le=\"0.025\"} 7",
        "everstep_timer_lateness_seconds_bucket{le=\"0.05\"} 8",
        "everstep_timer_lateness_seconds_bucket{le=\"120\"} 8",
        "everstep_timer_lateness_seconds_bucket{le=\"+Inf\"} 10",
        "everstep_timer_lateness_seconds_sum 4.05",
        "everstep_timer_lateness_seconds_count 10",
        "everstep_task_oldest_age_seconds 1.5",
        "everstep_sweep_lag_seconds 0.25",
    ] {
        assert!(lines.contains(&expected), "{expected} is not in\n{text}");
    }
}
