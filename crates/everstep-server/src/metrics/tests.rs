//! The text form is well formed and holds what was counted.

use super::*;

#[test]
fn what_was_counted_is_shown() {
    let metrics = Metrics::new().unwrap();
    metrics.call("everstep.api.v1.RunService/StartRun", Code::Ok, Duration::from_millis(3));
    metrics.call("everstep.api.v1.RunService/StartRun", Code::NotFound, Duration::from_secs(90));
    metrics.panicked();
    let node = NodeStatus { workers: 3, store_ok: true, healed: 7, ..NodeStatus::default() };
    let text = metrics.render(&node).unwrap();
    let call = |code: &str, rest: &str| {
        format!(
            "rpc_server_call_duration_seconds{rest}rpc_method=\"everstep.api.v1.RunService/StartRun\",\
             rpc_response_status_code=\"{code}\",rpc_system_name=\"grpc\""
        )
    };
    let lines: Vec<&str> = text.lines().collect();
    for expected in ["everstep_workers_connected 3", "everstep_store_up 1", "everstep_sweep_healed_total 7"] {
        assert!(lines.contains(&expected), "{expected} is not in\n{text}");
    }
    assert!(lines.contains(&"everstep_rpc_panics_total 1"), "{text}");
    assert!(text.contains(&format!("{}}} 1", call("OK", "_count{"))), "{text}");
    assert!(text.contains(&format!("{}}} 1", call("NOT_FOUND", "_count{"))), "{text}");
    for line in lines {
        assert!(
            line.starts_with("# ") || line.rsplit_once(' ').is_some_and(|(_, v)| v.parse::<f64>().is_ok()),
            "{line}"
        );
    }
}
