//! Children and requests to other runs: what is recorded, and what others hear of it.

use super::*;
use crate::{
    ChildClosed, ChildOutcome, ChildScheduled, ExternalAction, ExternalRequested, ExternalTarget, Outbound,
    ParentClose, ParentLink, ToRun,
};

pub(super) fn start_child(op: u32, on_parent_close: ParentClose, report_start: bool) -> CommitCommand {
    CommitCommand::StartChild(Box::new(ChildScheduled {
        child: OpId(op),
        run_id: RunId::from_uuid(Uuid::nil()),
        workflow_type: "ship".into(),
        workflow_id: String::new(),
        task_queue: String::new(),
        input: Payload::json("1"),
        run_timeout: None,
        retry: None,
        reuse: ReusePolicy::default(),
        on_parent_close,
        report_start,
        notes: crate::Notes::default(),
    }))
}

pub(super) fn request_external(op: u32, signal: bool) -> CommitCommand {
    let action = if signal {
        ExternalAction::Signal { name: "go".into(), input: Payload::json("2") }
    } else {
        ExternalAction::Cancel { reason: "enough".into() }
    };
    let target = ExternalTarget::Workflow("other".into());
    CommitCommand::RequestExternal(Box::new(ExternalRequested { op: OpId(op), target, action }))
}

pub(super) fn child_closed(op: u32, scheduled: Seq, kind: u8) -> CommandBody {
    let failure = Failure::new("Oops", "no");
    let outcome = match kind {
        0 => ChildOutcome::Completed(Payload::json("3")),
        1 => ChildOutcome::Ended { status: RunStatus::Failed, failure },
        _ => ChildOutcome::NotStarted(failure),
    };
    let run_id = RunId::from_uuid(id(77));
    CommandBody::ChildClosed(Box::new(ChildClosed { child: OpId(op), scheduled, run_id, outcome }))
}

fn resolved(op: u32, requested: Seq, failure: Option<Failure>) -> CommandBody {
    CommandBody::ResolveExternal { op: OpId(op), requested, failure }
}

fn started(op: u32, scheduled: Seq) -> CommandBody {
    CommandBody::ChildStarted { child: OpId(op), scheduled }
}

fn kinds(events: &[Event]) -> Vec<&str> {
    events.iter().map(|e| e.body.kind()).collect()
}

fn requests(outbound: Vec<Outbound>) -> Vec<ToRun> {
    let request = |o| match o {
        Outbound::ToRun(to) => *to,
        Outbound::Start(start) => panic!("{start:?}"),
    };
    outbound.into_iter().map(request).collect()
}

#[test]
fn a_child_is_known_before_it_begins_and_its_parent_hears_once_of_its_end() {
    let mut world = World::attached();
    let events = world.commit(vec![start_child(1, ParentClose::Terminate, false)]).unwrap();
    let EventBody::ChildScheduled(scheduled) = &events[0].body else { panic!("{events:?}") };
    let derived = RunId::derived(events[0].at, &[b"child", run_id().as_bytes(), &1u32.to_be_bytes()]);
    assert_eq!(scheduled.run_id, derived);
    assert_eq!(scheduled.workflow_id, format!("{}/1", run_id()));
    assert_eq!(scheduled.task_queue, "default");
    assert_eq!(world.outbox, BTreeSet::from([3]));

    let told = world.run.outbound(&events[0]);
    let [Outbound::Start(child)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((child.run_id, child.scheduled, child.report), (derived, 3, false));
    let now = decide_start(&child.start, (child.run_id, child.seed), None, None, at(2)).unwrap();
    let StartDecision::Start { event, .. } = now else { panic!("{now:?}") };
    assert_eq!(event.actor, Actor::Run(run_id()));
    let mut child = Run::begin(derived, &event).unwrap();
    let link = child.link().unwrap();
    assert_eq!(link.parent, Some((run_id(), OpId(1))));

    let end = Command {
        id: CommandId::from_uuid(id(5)),
        actor: Actor::System,
        body: CommandBody::Terminate { reason: "x".into() },
    };
    let end = decide(&child, &end, at(3)).unwrap().events;
    child.apply(&end[0]).unwrap();
    let [to] = &requests(child.outbound(&end[0]))[..] else { panic!() };
    assert_eq!(to.target, ExternalTarget::Run(run_id()));
    world.commit(vec![CommitCommand::Park]).unwrap();
    assert_eq!(kinds(&world.send_command(&to.command, at(4)).unwrap()), ["ChildClosed"]);
    assert!(world.run.needs_worker(), "its end wakes the parent");
    assert!(world.send_command(&to.command, at(5)).unwrap().is_empty(), "only once");
    assert_eq!(world.run.open_children(), 0);
    assert!(world.run.outbound(&events[0]).is_empty(), "nothing is to begin any more");
    world.check();
}

#[test]
fn only_the_first_word_on_a_child_counts() {
    let mut world = World::attached();
    world.commit(vec![start_child(1, ParentClose::Terminate, true)]).unwrap();
    assert!(world.send(child_closed(1, 2, 0), at(2)).unwrap().is_empty(), "of another event");
    assert!(world.send(child_closed(4, 3, 0), at(2)).unwrap().is_empty(), "of no child");
    assert_eq!(kinds(&world.send(started(1, 3), at(2)).unwrap()), ["ChildStarted"]);
    assert!(world.outbox.is_empty(), "the start has been told");
    assert!(world.send(started(1, 3), at(2)).unwrap().is_empty());
    assert!(world.send(child_closed(1, 3, 2), at(2)).unwrap().is_empty(), "it has begun");
    assert_eq!(kinds(&world.send(child_closed(1, 3, 1), at(2)).unwrap()), ["ChildClosed"]);
    assert!(world.send(child_closed(1, 3, 0), at(2)).unwrap().is_empty());
    assert!(world.send(started(1, 3), at(2)).unwrap().is_empty());
    world.check();

    let mut world = World::attached();
    world.commit(vec![start_child(1, ParentClose::Terminate, false)]).unwrap();
    assert_eq!(kinds(&world.send(child_closed(1, 3, 2), at(2)).unwrap()), ["ChildClosed"]);
    assert!(world.outbox.is_empty(), "a child that cannot begin is told no more");
    world.check();
}

#[test]
fn the_end_of_a_parent_is_told_to_its_open_children_by_their_policy() {
    let mut world = World::attached();
    world
        .commit(vec![
            start_child(1, ParentClose::Terminate, false),
            start_child(2, ParentClose::RequestCancel, false),
            start_child(3, ParentClose::Abandon, false),
            start_child(4, ParentClose::Terminate, false),
        ])
        .unwrap();
    world.send(child_closed(4, 6, 0), at(2)).unwrap();
    let result = Payload::json("1");
    let end = world.commit(vec![CommitCommand::CompleteRun { result, unconsumed: vec![] }]).unwrap();
    let told = requests(world.run.outbound(&end[0]));
    let runs: Vec<RunId> = [1, 2].map(|op| world.run.child(OpId(op)).unwrap().run_id).to_vec();
    let targets: Vec<ExternalTarget> = runs.iter().map(|run| ExternalTarget::Run(*run)).collect();
    assert_eq!(told.iter().map(|to| to.target.clone()).collect::<Vec<_>>(), targets);
    assert!(matches!(told[0].command.body, CommandBody::Terminate { .. }) && told[0].early);
    assert!(matches!(told[1].command.body, CommandBody::Cancel { .. }));
    assert!(world.outbox.contains(&end[0].seq));
    // A start that has not been told yet is told all the same: the end is told after it.
    assert!(matches!(world.run.outbound(&world.history[2])[..], [Outbound::Start(_)]));
    for body in [started(1, 3), child_closed(1, 3, 0), resolved(9, 9, None)] {
        assert!(world.send(body, at(3)).unwrap().is_empty(), "a closed run takes it and does nothing");
    }
    world.check();
}

#[test]
fn a_run_that_is_followed_by_another_leaves_its_end_to_that_one() {
    let origin = crate::Origin {
        parent: Some(crate::ParentLink {
            run_id: RunId::from_uuid(id(3)),
            child: OpId(1),
            scheduled: 2,
            report_start: false,
            above: 7,
        }),
        ..crate::Origin::default()
    };
    let mut world = World::of(&StartRun { origin, ..request() });
    world.send(attach(1, "b1"), at(1)).unwrap();
    let end = world.commit(vec![CommitCommand::ContinueAsNew(Box::default())]).unwrap();
    assert!(world.run.outbound(&end[0]).is_empty() && world.outbox.is_empty());
    let next = world.next.as_ref().unwrap();
    let parent = next.start.origin.parent.as_ref().map(|parent| (parent.run_id, parent.above));
    assert_eq!(parent, Some((RunId::from_uuid(id(3)), 7)), "the next run knows whose child it is");
    world.check();
}

#[test]
fn a_request_to_another_run_is_answered_once() {
    let mut world = World::attached();
    let events = world.commit(vec![request_external(1, true), request_external(2, false)]).unwrap();
    let told: Vec<ToRun> = events.iter().flat_map(|e| requests(world.run.outbound(e))).collect();
    assert_eq!(told.iter().map(|to| to.reply).collect::<Vec<_>>(), [Some((OpId(1), 3)), Some((OpId(2), 4))]);
    let CommandBody::Signal { signal_id, .. } = &told[0].command.body else { panic!("{told:?}") };
    assert_eq!(*signal_id, format!("{}/1", run_id()));
    assert!(told[0].command.id != told[1].command.id && !told[0].early);
    world.commit(vec![CommitCommand::Park]).unwrap();
    assert_eq!(kinds(&world.send(resolved(1, 3, None), at(2)).unwrap()), ["ExternalResolved"]);
    assert!(world.run.needs_worker());
    assert!(world.send(resolved(1, 3, Some(Failure::new("RunClosed", ""))), at(2)).unwrap().is_empty());
    assert!(world.send(resolved(2, 3, None), at(2)).unwrap().is_empty(), "of another event");
    assert_eq!(world.outbox, BTreeSet::from([4]));
    world.check();
}

#[test]
fn a_number_stands_for_one_thing() {
    let timer = |op: u32| CommitCommand::StartTimer { timer: OpId(op), delay: Duration::from_secs(1) };
    let child = |op: u32| start_child(op, ParentClose::Abandon, false);
    let each = [child(1), request_external(1, true), timer(1), complete(1, 1)];
    for (i, first) in each.iter().enumerate() {
        for second in &each {
            let mut world = World::attached();
            assert!(world.commit(vec![first.clone(), second.clone()]).is_err(), "{first:?} {second:?}");
            world.commit(vec![first.clone()]).unwrap();
            assert!(world.commit(vec![second.clone()]).is_err(), "{i}: {first:?}, later {second:?}");
            world.check();
        }
    }
    let mut world = World::attached();
    assert!(world.commit(vec![child(0)]).is_err());
    assert!(world.commit(vec![request_external(0, true)]).is_err());
}

#[test]
fn names_that_could_not_be_stored_are_refused() {
    let with = |change: &dyn Fn(&mut ChildScheduled)| {
        let CommitCommand::StartChild(mut wanted) = start_child(1, ParentClose::Abandon, false) else {
            panic!()
        };
        change(&mut wanted);
        World::attached().commit(vec![CommitCommand::StartChild(wanted)])
    };
    assert!(with(&|_| {}).is_ok());
    assert!(with(&|w| w.workflow_type = "a\0".into()).is_err());
    assert!(with(&|w| w.workflow_id = "a\0".into()).is_err());
    assert!(with(&|w| w.task_queue = "ä".into()).is_err());
    assert!(with(&|w| drop(w.notes.memo.insert("a\0".into(), Payload::json("1")))).is_err());
    let long = vec![b'x'; limits::MEMO_BYTES_MAX + 1];
    assert!(with(&|w| drop(w.notes.memo.insert("m".into(), Payload::json(long.clone())))).is_err());
    assert!(
        with(&|w| w.retry = Some(RetryPolicy { backoff_coefficient: 0.0, ..RetryPolicy::default() }))
            .is_err()
    );
}

#[test]
fn too_many_open_children_end_the_run() {
    let mut world = World::attached();
    for from in (1..=10_000).step_by(1_000) {
        let more = (from..from + 1_000).map(|op| start_child(op, ParentClose::Abandon, false)).collect();
        world.commit(more).unwrap();
    }
    assert_eq!(world.run.open_children(), 10_000);
    let events = world.commit(vec![start_child(10_001, ParentClose::Abandon, false)]).unwrap();
    let EventBody::RunFailed { failure, .. } = &events[0].body else { panic!("{events:?}") };
    assert_eq!(failure.kind, "LimitExceeded");
}

#[test]
fn a_child_begins_with_what_its_parent_says_about_it() {
    let mut world = World::attached();
    let CommitCommand::StartChild(mut wanted) = start_child(1, ParentClose::Abandon, false) else { panic!() };
    wanted.notes.memo.insert("note".into(), Payload::json("1"));
    wanted.notes.attributes.insert("customer".into(), crate::Attribute::Keyword("acme".into()));
    let before = world.run.history_bytes();
    let events = world.commit(vec![CommitCommand::StartChild(wanted.clone())]).unwrap();
    assert_eq!(world.run.history_bytes() - before, 1 + 1 + 4, "input, memo and attribute");
    let [Outbound::Start(child)] = &world.run.outbound(&events[0])[..] else { panic!() };
    let now = decide_start(&child.start, (child.run_id, child.seed), None, None, at(2)).unwrap();
    let StartDecision::Start { event, .. } = now else { panic!("{now:?}") };
    let begun = Run::begin(child.run_id, &event).unwrap();
    assert_eq!(begun.notes(), &wanted.notes);
    world.check();
}

/// The child that a run of this generation starts, and whether it may begin.
fn child_of(parent: Option<ParentLink>) -> (StartRun, Result<StartDecision, Rejection>) {
    let origin = crate::Origin { parent, ..crate::Origin::default() };
    let mut world = World::of(&StartRun { origin, ..request() });
    world.send(attach(1, "b1"), at(1)).unwrap();
    let events = world.commit(vec![start_child(1, ParentClose::Abandon, false)]).unwrap();
    let told = world.run.outbound(events.last().unwrap());
    let [Outbound::Start(child)] = &told[..] else { panic!("{told:?}") };
    (child.start.clone(), decide_start(&child.start, (child.run_id, child.seed), None, None, at(2)))
}

#[test]
fn children_have_children_down_to_a_limit() {
    let mut parent = None;
    for generation in 1..=limits::GENERATIONS_MAX {
        let (child, begun) = child_of(parent.take());
        assert!(begun.is_ok(), "{generation}: {begun:?}");
        parent = child.origin.parent;
        assert_eq!(parent.as_ref().map(|parent| parent.above), Some(generation - 1));
    }
    let (_, refused) = child_of(parent);
    let failure = refused.unwrap_err().to_failure();
    assert_eq!((failure.kind.as_str(), failure.non_retryable), ("LimitExceeded", true));
    assert!(failure.message.contains("is 65, more than the limit of 64"), "{failure:?}");
    assert!(failure.message.contains("continue as new"), "{failure:?}");
}
