//! An event on one line, for people: what JSON says of it, less what only programs ask for.

use everstep_core::{Event, EventBody, Origin, QueuedOptions};
use serde_json::{Map, Value};

use super::{attributes, millis, printable, time};

/// Fields that say nothing to people.
const NOISE: [&str; 8] = [
    "session_id",
    "request_id",
    "namespace",
    "task_queue",
    "signal_id",
    "seed",
    "traceparent",
    "report_start",
];
/// How many fields a line has.
const FIELDS: usize = 6;
/// How long a value may be.
const CHARS: usize = 60;

/// An event on one line, for people.
pub(crate) fn event_line(e: &Event) -> String {
    let mut text = format!("{:>4}  {}  {:<16}", e.seq, &time(e.at)[11..23], e.body.kind());
    let Value::Object(fields) = attributes(&e.body) else { return text };
    let said = fields.into_iter().filter(|(name, value)| {
        let empty = value.is_null() || *value == "" || *value == Value::Array(Vec::new());
        !empty && !NOISE.contains(&name.as_str())
    });
    let told = said.flat_map(|(name, value)| match (name.as_str(), &e.body) {
        ("origin", EventBody::RunStarted(s)) => origin(&s.origin),
        ("options", EventBody::StepScheduled(s)) => options(&s.options),
        _ => vec![(name, value)],
    });
    for (name, value) in told.take(FIELDS) {
        let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        let short: String = value.chars().take(CHARS).collect();
        let more = if value.chars().count() > CHARS { "…" } else { "" };
        text.push_str(&format!("  {name}={}{more}", printable(&short)));
    }
    text
}

/// The runs that a run comes from.
fn origin(origin: &Origin) -> Vec<(String, Value)> {
    let parent = origin.parent.as_ref().map(|parent| parent.run_id);
    let runs = [("parent", parent), ("previous", origin.previous)];
    let runs = runs.into_iter().filter_map(|(name, run)| Some((name.to_owned(), run?.to_string().into())));
    let again = (origin.attempt > 1).then(|| ("attempt".to_owned(), origin.attempt.into()));
    runs.chain(again).collect()
}

/// What the code of a queued step asked for, and only that.
fn options(options: &QueuedOptions) -> Vec<(String, Value)> {
    let mut told = Map::new();
    told.insert("queue".to_owned(), options.task_queue.as_str().into());
    if options.priority != QueuedOptions::PRIORITY_DEFAULT {
        told.insert("priority".to_owned(), options.priority.into());
    }
    let times = [
        ("schedule_to_start_ms", options.schedule_to_start),
        ("start_to_close_ms", options.start_to_close),
        ("schedule_to_close_ms", options.schedule_to_close),
        ("heartbeat_ms", options.heartbeat),
    ];
    told.extend(times.into_iter().filter_map(|(name, time)| Some((name.to_owned(), millis(time?)))));
    if let Some(policy) = options.in_doubt {
        told.insert("in_doubt".to_owned(), policy.as_str().into());
    }
    told.into_iter().collect()
}
