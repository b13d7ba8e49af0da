//! What a worker says, by hand: a good message of each kind.

use super::world::{attribute, attributes, failure, json, policy, seconds};
use everstep_proto::api::command::Command;
use everstep_proto::api::worker_message::Message as In;
use everstep_proto::api::{self, answer, complete_update, step_result};
use everstep_proto::history;

const ELSEWHERE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// The queue of the worker that is foreign to us.
pub(super) const QUEUE: &str = "foreign";

pub(super) fn hello() -> api::Hello {
    let held = api::HeldRun { run_id: ELSEWHERE.to_owned(), epoch: 1, seen_seq: 1 };
    let held_step = api::HeldStep {
        run_id: ELSEWHERE.to_owned(),
        step_id: 1,
        attempt: 1,
        claim_id: ELSEWHERE.to_owned(),
    };
    api::Hello {
        protocol_min: 1,
        protocol_max: 1,
        namespace: "default".to_owned(),
        task_queues: vec!["elsewhere".to_owned()],
        workflow_types: vec!["order".to_owned()],
        worker: worker(),
        run_slots: 10,
        session_token: String::new(),
        held: vec![held],
        step_types: vec!["polish".to_owned()],
        step_slots: 5,
        steps_per_second: 2.5,
        held_steps: vec![held_step],
        check_only: false,
        compatible_builds: vec!["old".to_owned()],
        pinned_workflow_types: vec!["order".to_owned()],
        capabilities: vec!["asks".to_owned(), "steps".to_owned()],
    }
}

fn worker() -> Option<history::WorkerInfo> {
    Some(history::WorkerInfo { identity: "w".to_owned(), build_id: "b".to_owned() })
}

/// The Hello of a worker that takes runs.
pub(super) fn taking() -> api::Hello {
    api::Hello {
        protocol_min: 1,
        protocol_max: 1,
        task_queues: vec![QUEUE.to_owned()],
        worker: worker(),
        run_slots: 100_000,
        capabilities: vec!["steps".to_owned()],
        ..api::Hello::default()
    }
}

/// Messages that need no run.
pub(super) fn messages() -> Vec<(String, In)> {
    let (run_id, claim_id) = (ELSEWHERE.to_owned(), ELSEWHERE.to_owned());
    let mut all = vec![
        ("heartbeat".to_owned(), In::Heartbeat(api::Heartbeat { number: 5 })),
        ("need_history".to_owned(), In::NeedHistory(api::NeedHistory { run_id: run_id.clone(), epoch: 1 })),
        ("draining".to_owned(), In::Draining(api::Draining {})),
        ("limits".to_owned(), In::Limits(api::Limits { step_slots: 5, steps_per_second: 2.5 })),
    ];
    let beat = api::StepBeat {
        run_id: run_id.clone(),
        step_id: 1,
        attempt: 1,
        claim_id: claim_id.clone(),
        details: json("1"),
    };
    all.push(("step_beat".to_owned(), In::StepBeat(beat)));
    let ends = [
        step_result::End::Completed(json("1").unwrap_or_default()),
        step_result::End::Failed(failure()),
        step_result::End::Canceled("enough".to_owned()),
        step_result::End::Deferred(api::Deferred {}),
        step_result::End::Returned(api::Returned {}),
    ];
    for (i, end) in ends.into_iter().enumerate() {
        let result = api::StepResult {
            run_id: run_id.clone(),
            step_id: 1,
            attempt: 1,
            claim_id: claim_id.clone(),
            elapsed: seconds(1),
            end: Some(end),
            details: json("1"),
        };
        all.push((format!("step_result#{i}"), In::StepResult(result)));
    }
    let said = [
        answer::Outcome::Value(json("1").unwrap_or_default()),
        answer::Outcome::Refused(failure()),
        answer::Outcome::Mismatch(blocked()),
        answer::Outcome::Passed(api::Passed {}),
        answer::Outcome::Gone("gone".to_owned()),
    ];
    for (i, outcome) in said.into_iter().enumerate() {
        let answer = api::Answer { ask_id: run_id.clone(), seq: 1, outcome: Some(outcome) };
        all.push((format!("answer#{i}"), In::Answer(answer)));
    }
    all
}

fn blocked() -> history::RunBlocked {
    history::RunBlocked {
        kind: history::BlockKind::Nondeterminism.into(),
        at_seq: 1,
        expected: "a step".to_owned(),
        produced: "a timer".to_owned(),
        source: "a.rs:1".to_owned(),
        hint: "mend it".to_owned(),
        build_id: "b".to_owned(),
    }
}

fn step_policy() -> Option<api::RetryPolicy> {
    let history::RetryPolicy {
        initial_interval,
        backoff_coefficient,
        maximum_interval,
        maximum_attempts,
        non_retryable_kinds,
    } = policy();
    Some(api::RetryPolicy {
        initial_interval,
        backoff_coefficient,
        maximum_interval,
        maximum_attempts,
        non_retryable_kinds,
    })
}

/// What a workflow may do: commands of one commit, of which the last one is the one to break.
pub(super) fn commands() -> Vec<Vec<Command>> {
    let mut all = of_steps();
    all.extend(of_runs());
    all.extend(of_ends());
    all
}

fn of_steps() -> Vec<Vec<Command>> {
    let (step_id, name, attempt) = (1, "charge".to_owned(), 1);
    let in_doubt = history::DoubtPolicy::Retry.into();
    let (elapsed, result, delay) = (seconds(1), json("1"), seconds(60));
    let scheduled = || {
        Command::ScheduleStep(api::ScheduleStep {
            step_id: 1,
            name: "polish".to_owned(),
            input: json("1"),
            task_queue: "elsewhere".to_owned(),
            priority: 2,
            schedule_to_start: seconds(60),
            start_to_close: seconds(60),
            schedule_to_close: seconds(60),
            heartbeat: seconds(60),
            retry_policy: step_policy(),
            in_doubt: history::DoubtPolicy::AskHuman.into(),
        })
    };
    let failed = api::FailStep {
        step_id,
        name: name.clone(),
        attempt,
        elapsed,
        failure: Some(failure()),
        retry_policy: step_policy(),
    };
    let timer = || Command::StartTimer(api::StartTimer { timer_id: 1, delay });
    vec![
        vec![Command::StartStep(api::StartStep { step_id, name: name.clone(), attempt, in_doubt })],
        vec![Command::CompleteStep(api::CompleteStep { step_id, name, attempt, elapsed, result })],
        vec![Command::FailStep(failed)],
        vec![timer()],
        vec![timer(), Command::CancelTimer(api::CancelTimer { timer_id: 1 })],
        vec![scheduled()],
        vec![scheduled(), Command::CancelStep(api::CancelStep { step_id: 1 })],
    ]
}

fn of_runs() -> Vec<Vec<Command>> {
    use history::external_requested::{Action, Target};
    let child = history::ChildScheduled {
        child_id: 1,
        run_id: ELSEWHERE.to_owned(),
        workflow_type: "ship".to_owned(),
        workflow_id: String::new(),
        task_queue: "elsewhere".to_owned(),
        input: json("1"),
        run_timeout: seconds(60),
        retry_policy: Some(policy()),
        reuse_policy: history::ChildReusePolicy::Reject.into(),
        on_parent_close: history::ParentClosePolicy::Terminate.into(),
        report_start: false,
        memo: json("1").into_iter().map(|entry| ("note".to_owned(), entry)).collect(),
        search_attributes: attributes().map(|(name, value, _)| (name.to_owned(), attribute(value))).into(),
    };
    let external = |target, action| {
        let (target, action) = (Some(target), Some(action));
        vec![Command::RequestExternal(history::ExternalRequested { op_id: 1, target, action })]
    };
    let signal = history::ExternalSignal { name: "go".to_owned(), input: json("1") };
    let cancel = history::ExternalCancel { reason: "enough".to_owned() };
    let change = |value| history::SearchAttributeChange { value: Some(attribute(value)) };
    let upsert = api::Upsert {
        op_id: 1,
        search_attributes: attributes().map(|(name, value, _)| (name.to_owned(), change(value))).into(),
        memo: [("note".to_owned(), history::MemoChange { value: json("1") })].into(),
    };
    let complete = |outcome| {
        vec![Command::CompleteUpdate(api::CompleteUpdate { accepted_seq: 1, outcome: Some(outcome) })]
    };
    let mark = api::MarkVersion { change_id: "fee".to_owned(), version: 1 };
    vec![
        vec![Command::StartChild(child)],
        external(Target::RunId(ELSEWHERE.to_owned()), Action::Signal(signal)),
        external(Target::WorkflowId("other".to_owned()), Action::Cancel(cancel)),
        vec![Command::Upsert(upsert)],
        vec![Command::MarkVersion(mark)],
        complete(complete_update::Outcome::Result(json("1").unwrap_or_default())),
        complete(complete_update::Outcome::Failure(failure())),
    ]
}

fn of_ends() -> Vec<Vec<Command>> {
    let (failure, unconsumed) = (Some(failure()), Vec::new());
    let next = api::ContinueAsNew {
        workflow_type: "order".to_owned(),
        task_queue: "elsewhere".to_owned(),
        input: json("1"),
        run_timeout: seconds(60),
        unconsumed: Vec::new(),
    };
    vec![
        vec![Command::CompleteRun(api::CompleteRun { result: json("1"), unconsumed: Vec::new() })],
        vec![Command::FailRun(api::FailRun { failure, unconsumed })],
        vec![Command::CancelRun(api::CancelRunAccepted { details: "enough".to_owned() })],
        vec![Command::Park(api::Park {})],
        vec![Command::Release(api::Release { reason: "broken".to_owned() })],
        vec![Command::Block(blocked())],
        vec![Command::ContinueAsNew(next)],
    ]
}

/// A commit of these commands by the owner of a run, who has seen all of it.
pub(super) fn commit(run: &api::HeldRun, commands: Vec<Command>) -> api::Commit {
    let commands = commands.into_iter().map(|c| api::Command { command: Some(c) }).collect();
    let api::HeldRun { run_id, epoch, seen_seq } = run.clone();
    api::Commit { run_id, epoch, number: 1, seen_seq, commands, ahead_at: None }
}
