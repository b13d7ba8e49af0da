//! Which wake rows fit which runs.

use everstep_core::{Duration, EventBody, OpId, Payload, RunId, RunStatus, TimerKey};
use uuid::Uuid;

use super::{LastEvent, WakeRows};

/// A run that is running, that nobody owns, and that nothing will wake; its history ends with a park.
fn idle() -> WakeRows {
    WakeRows {
        run: RunId::from_uuid(Uuid::nil()),
        status: Some(RunStatus::Running),
        owned: false,
        task: false,
        timers: false,
        delayed: false,
        steps: false,
        wakes: false,
        last: Some(LastEvent { kind: "WorkerDetached".to_owned(), parked: true }),
    }
}

fn ends_with(body: &EventBody) -> WakeRows {
    WakeRows { last: Some(LastEvent { kind: body.kind().to_owned(), parked: false }), ..idle() }
}

#[track_caller]
fn fits(rows: &WakeRows) {
    assert_eq!(rows.misfit(), None, "{rows:?}");
}

#[track_caller]
fn does_not_fit(rows: &WakeRows) {
    assert!(rows.misfit().is_some(), "{rows:?}");
}

#[test]
fn a_task_belongs_to_a_run_that_nobody_has() {
    fits(&WakeRows { task: true, last: None, ..idle() });
    fits(&WakeRows { task: true, timers: true, last: None, ..idle() });
    let task = WakeRows { task: true, last: None, ..idle() };
    does_not_fit(&WakeRows { owned: true, ..task.clone() });
    for status in RunStatus::ALL.into_iter().filter(|s| *s != RunStatus::Running) {
        does_not_fit(&WakeRows { status: Some(status), ..task.clone() });
    }
    does_not_fit(&WakeRows { status: None, ..task });
}

#[test]
fn a_timer_belongs_to_an_open_run() {
    let timer = WakeRows { timers: true, ..idle() };
    fits(&timer);
    fits(&WakeRows { owned: true, last: None, ..timer.clone() });
    fits(&WakeRows { status: Some(RunStatus::Blocked), last: None, ..timer.clone() });
    for status in RunStatus::ALL.into_iter().filter(|s| s.is_closed()) {
        does_not_fit(&WakeRows { status: Some(status), last: None, ..timer.clone() });
        fits(&WakeRows { status: Some(status), timers: false, last: None, ..timer.clone() });
    }
    does_not_fit(&WakeRows { status: None, last: None, ..timer });
}

#[test]
fn a_queued_step_belongs_to_an_open_run() {
    let step = WakeRows { steps: true, ..idle() };
    fits(&step);
    fits(&WakeRows { owned: true, last: None, ..step.clone() });
    fits(&WakeRows { status: Some(RunStatus::Blocked), last: None, ..step.clone() });
    does_not_fit(&WakeRows { status: Some(RunStatus::Canceled), last: None, ..step.clone() });
    does_not_fit(&WakeRows { status: None, last: None, ..step });
}

#[test]
fn a_wake_belongs_to_an_owner() {
    let wake = WakeRows { wakes: true, ..idle() };
    fits(&WakeRows { owned: true, last: None, ..wake.clone() });
    does_not_fit(&wake);
    does_not_fit(&WakeRows { task: true, last: None, ..wake.clone() });
    does_not_fit(&WakeRows { status: Some(RunStatus::Blocked), last: None, ..wake.clone() });
    does_not_fit(&WakeRows { status: Some(RunStatus::Failed), last: None, ..wake.clone() });
    does_not_fit(&WakeRows { status: None, last: None, ..wake });
}

#[test]
fn what_a_worker_has_to_see_needs_a_task() {
    fits(&idle());
    fits(&WakeRows { status: None, last: None, ..idle() });
    let lost = LastEvent { kind: "WorkerDetached".to_owned(), parked: false };
    does_not_fit(&WakeRows { last: Some(lost), ..idle() });
    let (name, signal_id) = ("go".to_owned(), "1".to_owned());
    for body in [
        EventBody::TimerFired { timer: TimerKey::timer(OpId(1)) },
        EventBody::SignalReceived { name, signal_id, input: Payload::default() },
        EventBody::CancelRequested { reason: String::new() },
        EventBody::RunUnblocked { build_id: "b2".to_owned() },
        EventBody::StepCompleted {
            step: OpId(1),
            name: "transcode".to_owned(),
            attempt: 1,
            elapsed: Duration::ZERO,
            result: Payload::default(),
        },
    ] {
        does_not_fit(&ends_with(&body));
        fits(&WakeRows { delayed: true, timers: true, ..ends_with(&body) });
        // A task, an owner or a block is what it calls for.
        fits(&WakeRows { task: true, last: None, ..ends_with(&body) });
        fits(&WakeRows { owned: true, last: None, ..ends_with(&body) });
        fits(&WakeRows { status: Some(RunStatus::Blocked), last: None, ..ends_with(&body) });
    }
    let unknown = LastEvent { kind: "RunAdmired".to_owned(), parked: false };
    fits(&WakeRows { last: Some(unknown), ..idle() });
}
