//! Figures for `/metrics`, in Prometheus' text form: a histogram of the calls, and the node's own counters.

mod waiting;

use std::fmt::Write;
use std::time::Duration;

use everstep_engine::{LATENESS_MILLIS, Lateness, NodeStatus, Upkeep};
use prometheus::{Encoder, HistogramOpts, HistogramVec, IntCounter, IntGauge, Registry, TextEncoder};
use tonic::Code;

/// Bounds of the buckets, in seconds, from a read out of memory to a long poll.
const BUCKETS: [f64; 15] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 60.0];

/// The content type of what [`Metrics::render`] gives.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// What is counted at the edge.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    calls: HistogramVec,
    connections: IntGauge,
    refused: IntCounter,
    panics: IntCounter,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let calls = HistogramVec::new(
            HistogramOpts::new(
                "rpc_server_call_duration_seconds",
                "Time from a call's headers to those of its answer; of a stream, to its beginning.",
            )
            .buckets(BUCKETS.to_vec())
            .const_label("rpc_system_name", "grpc"),
            &["rpc_method", "rpc_response_status_code"],
        )?;
        let connections = IntGauge::new("everstep_connections", "Open client connections.")?;
        let refused = IntCounter::new(
            "everstep_connections_refused_total",
            "Connections turned away because there were too many.",
        )?;
        let panics =
            IntCounter::new("everstep_rpc_panics_total", "Calls that ended in a bug of the server.")?;
        registry.register(Box::new(calls.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        registry.register(Box::new(panics.clone()))?;
        Ok(Self { registry, calls, connections, refused, panics })
    }

    /// Counts a call. `method` must be one of a known set.
    pub(crate) fn call(&self, method: &str, code: Code, took: Duration) {
        self.calls.with_label_values(&[method, code_name(code)]).observe(took.as_secs_f64());
    }

    /// Counts a call that panicked.
    pub(crate) fn panicked(&self) {
        self.panics.inc();
    }

    /// The gauge of open connections.
    pub(crate) fn connections(&self) -> &IntGauge {
        &self.connections
    }

    /// The counter of refused connections.
    pub(crate) fn refused(&self) -> &IntCounter {
        &self.refused
    }

    /// All figures.
    pub(crate) fn render(
        &self,
        node: &NodeStatus,
        upkeep: &Upkeep,
        doubts: Option<u64>,
    ) -> Result<String, prometheus::Error> {
        let mut bytes = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut bytes)?;
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        node_figures(node, &mut text);
        upkeep_figures(upkeep, &mut text);
        // A database that does not answer is told by `everstep_store_up`; a stale figure would be worse than none.
        if let Some(doubts) = doubts {
            let help = "Steps in doubt, in the whole database.";
            write_figure(&mut text, "gauge", ("everstep_steps_in_doubt", help), doubts);
        }
        Ok(text)
    }
}

fn node_figures(node: &NodeStatus, text: &mut String) {
    let NodeStatus {
        workers,
        runs_loaded,
        store_ok,
        store_exhausted,
        dispatch_ok,
        draining,
        events_appended,
        conflicts,
        fenced,
        unknown_settled,
        runs_started,
        runs_closed,
        healed,
    } = *node;
    let mut figure = |kind: &str, name: &str, help: &str, value: u64| {
        write_figure(text, kind, (name, help), value);
    };
    figure("gauge", "everstep_workers_connected", "Workers connected to this node.", workers as u64);
    figure("gauge", "everstep_runs_loaded", "Runs in this node's memory.", runs_loaded as u64);
    figure("gauge", "everstep_store_up", "1 when the store answered its last call.", store_ok.into());
    figure(
        "gauge",
        "everstep_store_exhausted",
        "1 when the store said in the last seconds that it is out of room.",
        store_exhausted.into(),
    );
    figure("gauge", "everstep_dispatch_up", "1 when dispatch reaches the other nodes.", dispatch_ok.into());
    figure("gauge", "everstep_draining", "1 while the node is shutting down.", draining.into());
    figure("counter", "everstep_events_appended_total", "Events appended since start.", events_appended);
    figure("counter", "everstep_append_conflicts_total", "Appends that lost their race.", conflicts);
    figure("counter", "everstep_commits_fenced_total", "Commits refused for an old epoch.", fenced);
    figure(
        "counter",
        "everstep_outcomes_settled_total",
        "Unknown outcomes that were settled.",
        unknown_settled,
    );
    figure("counter", "everstep_runs_started_total", "Runs started by this node.", runs_started);
    figure("counter", "everstep_runs_closed_total", "Runs closed by this node.", runs_closed);
    figure(
        "counter",
        "everstep_sweep_healed_total",
        "Tasks, timers, wakes and lost runs that only the sweep found.",
        healed,
    );
}

/// One figure without labels.
fn write_figure(text: &mut String, kind: &str, (name, help): (&str, &str), value: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
}

fn upkeep_figures(upkeep: &Upkeep, text: &mut String) {
    let Upkeep {
        waiting_for_build,
        blocked_runs,
        oldest_task,
        untold,
        oldest_untold,
        sweep_lag,
        runs_lost,
        wake_violations,
        timer_lateness,
    } = upkeep;
    waiting::figures(waiting_for_build, text);
    let blocked = "Blocked runs, counted up to 10,000.";
    write_figure(text, "gauge", ("everstep_runs_blocked", blocked), blocked_runs);
    let oldest = "How long the oldest task has waited for a worker, at least.";
    write_figure(text, "gauge", ("everstep_task_oldest_age_seconds", oldest), oldest_task.as_secs_f64());
    let pending = "Events that other runs have perhaps not heard of, counted up to 10,000.";
    write_figure(text, "gauge", ("everstep_outbox_pending", pending), untold);
    let oldest = "How long the oldest of them has waited to be told, at least.";
    write_figure(text, "gauge", ("everstep_outbox_oldest_seconds", oldest), oldest_untold.as_secs_f64());
    let lag = "Time since the sweep last came to its end.";
    write_figure(text, "gauge", ("everstep_sweep_lag_seconds", lag), sweep_lag.as_secs_f64());
    let lost = "Runs that this node took from a worker whose session had ended.";
    write_figure(text, "counter", ("everstep_runs_lost_total", lost), runs_lost);
    let name = "everstep_invariant_violations";
    let _ = writeln!(text, "# HELP {name} Runs that break an invariant, as of the last look.");
    let _ = writeln!(text, "# TYPE {name} gauge\n{name}{{inv=\"25\"}} {wake_violations}");
    lateness_figure(timer_lateness, text);
}

fn lateness_figure(lateness: &Lateness, text: &mut String) {
    let name = "everstep_timer_lateness_seconds";
    let _ = writeln!(text, "# HELP {name} How late timers were claimed.\n# TYPE {name} histogram");
    let mut count = 0;
    let bounds = LATENESS_MILLIS.map(|millis| Duration::from_millis(millis).as_secs_f64().to_string());
    for (in_bucket, bound) in lateness.counts.iter().zip(bounds.iter().map(String::as_str).chain(["+Inf"])) {
        count += in_bucket;
        let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
    }
    let _ = writeln!(text, "{name}_sum {}\n{name}_count {count}", lateness.sum.as_secs_f64());
}

/// The canonical name of a code, such as `DEADLINE_EXCEEDED`.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests;
