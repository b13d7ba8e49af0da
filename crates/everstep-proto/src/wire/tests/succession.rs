//! Runs that follow runs, on the wire.

use everstep_core::{Continuation, Digest, HeardSignal, Origin};

use super::*;

fn run_ids() -> impl Strategy<Value = RunId> {
    uuid().prop_map(RunId::from_uuid)
}

fn heard() -> impl Strategy<Value = HeardSignal> {
    (text(), any::<u64>(), timestamp()).prop_map(|(signal_id, said, at)| HeardSignal {
        signal_id,
        said: Digest::from_u64(said),
        at,
    })
}

/// A run that comes from others, or from a request that says when it starts and how often it is tried.
pub(super) fn followed() -> impl Strategy<Value = EventBody> {
    let link = || option::of(run_ids());
    (option::of(timestamp()), option::of(policy()), link(), link(), any::<u32>(), vec(heard(), 0..3))
        .prop_map(|(start_at, retry, previous, first, attempt, heard)| {
            let origin = Origin { previous, first, attempt, heard, ..Origin::default() };
            EventBody::RunStarted(Box::new(RunStarted { start_at, retry, origin, ..RunStarted::default() }))
        })
}

/// The ends of runs that others follow.
pub(super) fn ends() -> impl Strategy<Value = EventBody> {
    let seqs = || vec(any::<u64>(), 0..4);
    prop_oneof![
        (run_ids(), seqs()).prop_map(|(successor, carried)| EventBody::RunContinued { successor, carried }),
        (failure(), seqs(), run_ids()).prop_map(|(failure, unconsumed, by)| EventBody::RunFailed {
            failure,
            unconsumed,
            retried_by: Some(by),
        }),
        run_ids().prop_map(|by| EventBody::RunTimedOut { retried_by: Some(by) }),
    ]
}

pub(super) fn continues() -> impl Strategy<Value = CommitCommand> {
    (text(), text(), payload(), option::of(duration()), vec(any::<u64>(), 0..4)).prop_map(
        |(workflow_type, task_queue, input, run_timeout, unconsumed)| {
            CommitCommand::ContinueAsNew(Box::new(Continuation {
                workflow_type,
                task_queue,
                input,
                run_timeout,
                unconsumed,
            }))
        },
    )
}

#[test]
fn a_link_that_is_no_run_is_refused() {
    let continued = |id: &str| history::Event {
        at: Some(encode_timestamp(Timestamp::default())),
        seq: 2,
        command_id: Uuid::nil().to_string(),
        actor: "system".to_owned(),
        attributes: Some(history::event::Attributes::RunContinued(history::RunContinued {
            successor_run_id: id.to_owned(),
            carried: Vec::new(),
        })),
        ..history::Event::default()
    };
    for id in ["", "next"] {
        let error = decode_event(continued(id)).unwrap_err();
        assert!(error.to_string().contains("run_continued.successor_run_id"), "{error}");
    }
}
