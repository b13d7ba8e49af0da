//! Queued steps on the wire.

use everstep_core::{QueuedOptions, StepScheduled};

use super::*;

fn scheduled(priority: impl Strategy<Value = u8>) -> impl Strategy<Value = StepScheduled> {
    let time = || option::of(duration());
    let op = any::<u32>().prop_map(OpId);
    ((op, text(), payload(), text()), priority, (time(), time(), time(), time()), policy(), doubt_policy())
        .prop_map(
            |(
                (step, name, input, task_queue),
                priority,
                (start, close, whole, heartbeat),
                retry,
                in_doubt,
            )| {
                let options = QueuedOptions {
                    task_queue,
                    priority,
                    schedule_to_start: start,
                    start_to_close: close,
                    schedule_to_close: whole,
                    heartbeat,
                    retry,
                    in_doubt,
                };
                StepScheduled { step, name, input, options }
            },
        )
}

pub(super) fn bodies() -> impl Strategy<Value = EventBody> {
    prop_oneof![
        3 => scheduled(any::<u8>()).prop_map(|s| EventBody::StepScheduled(Box::new(s))),
        1 => any::<u32>().prop_map(|step| EventBody::StepCancelRequested { step: OpId(step) }),
    ]
}

/// In a command, priority 0 is for the one that no code names.
pub(super) fn commands() -> impl Strategy<Value = CommitCommand> {
    prop_oneof![
        3 => scheduled(1..=u8::MAX).prop_map(|s| CommitCommand::ScheduleStep(Box::new(s))),
        1 => any::<u32>().prop_map(|step| CommitCommand::CancelStep { step: OpId(step) }),
    ]
}

#[test]
fn a_priority_that_is_not_named_is_the_one_in_the_middle() {
    let wire = api::ScheduleStep {
        step_id: 1,
        name: "q".to_owned(),
        retry_policy: Some(encode_retry_policy(&RetryPolicy::default())),
        ..api::ScheduleStep::default()
    };
    let command = api::Command { command: Some(api::command::Command::ScheduleStep(wire.clone())) };
    let commit = |command| api::Commit {
        run_id: Uuid::nil().to_string(),
        number: 1,
        commands: vec![command],
        ..api::Commit::default()
    };
    let (_, decoded) = decode_commit(commit(command)).unwrap();
    let [CommitCommand::ScheduleStep(step)] = &decoded.commands[..] else { panic!("{decoded:?}") };
    assert_eq!(step.options, QueuedOptions::default());
    for (wrong, field) in [
        (api::ScheduleStep { priority: 256, ..wire.clone() }, "commands[0].schedule_step.priority"),
        (api::ScheduleStep { in_doubt: 77, ..wire.clone() }, "commands[0].schedule_step.in_doubt"),
        (api::ScheduleStep { retry_policy: None, ..wire }, "commands[0].schedule_step.retry_policy"),
    ] {
        let command = api::Command { command: Some(api::command::Command::ScheduleStep(wrong)) };
        assert_eq!(decode_commit(commit(command)).unwrap_err().field, field);
    }
}
