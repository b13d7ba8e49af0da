//! What runs hear of each other: all of it, in order, from one node, and from another one when that dies.

mod bench;

use everstep_core::{
    ChildScheduled, CommitCommand, Continuation, EventBody, ExternalAction, ExternalRequested,
    ExternalTarget, OpId, ParentClose, Payload, ReusePolicy, RunId, RunStatus,
};
use uuid::Uuid;

use super::{FLIGHTS_MAX, OUTBOX_CLAIM_MAX};
use bench::{Bench, shared_store};

fn child(op: u32) -> CommitCommand {
    CommitCommand::StartChild(Box::new(ChildScheduled {
        child: OpId(op),
        run_id: RunId::from_uuid(Uuid::nil()),
        workflow_type: "t".to_owned(),
        workflow_id: String::new(),
        task_queue: String::new(),
        input: Payload::json("1"),
        run_timeout: None,
        retry: None,
        reuse: ReusePolicy::default(),
        on_parent_close: ParentClose::default(),
        report_start: false,
        notes: everstep_core::Notes::default(),
    }))
}

fn children(count: u32) -> Vec<CommitCommand> {
    (1..=count).map(child).collect()
}

/// Sends the run a signal with the number of the operation.
fn signal(op: u32, to: RunId) -> CommitCommand {
    let action = ExternalAction::Signal { name: "go".to_owned(), input: Payload::json(op.to_string()) };
    let target = ExternalTarget::Run(to);
    CommitCommand::RequestExternal(Box::new(ExternalRequested { op: OpId(op), target, action }))
}

fn complete() -> CommitCommand {
    CommitCommand::CompleteRun { result: Payload::json("1"), unconsumed: Vec::new() }
}

/// The numbers of the signals that the run got, in order.
fn heard(bench: &Bench, run: RunId) -> Vec<u32> {
    let events = bench.store.read_events_sync(run, 0, usize::MAX);
    let number = |body: &EventBody| match body {
        EventBody::SignalReceived { input, .. } => std::str::from_utf8(&input.data).ok()?.parse().ok(),
        _ => None,
    };
    events.iter().filter_map(|event| number(&event.body)).collect()
}

#[test]
fn a_fan_out_leaves_nothing_to_the_sweep() {
    let (store, clock) = shared_store();
    let mut bench = Bench::on(&store, &clock, 1);
    bench.worker();
    let parent = bench.start("parent");
    bench.commit(parent, children(300));
    let runs: Vec<RunId> = store.run_ids_sync().into_iter().filter(|run| *run != parent).collect();
    assert_eq!(runs.len(), 300, "all have begun");
    for run in runs {
        bench.commit(run, vec![complete()]);
    }
    let closed = bench.kinds(parent).iter().filter(|kind| *kind == "ChildClosed").count();
    assert_eq!(closed, 300, "their parent has heard of each");
    assert_eq!(store.outbox_sync(), []);
    clock.pass_secs(3);
    assert!(bench.sweep().is_empty());
    assert_eq!(bench.node.status().healed, 0, "the sweep healed nothing");
}

#[test]
fn what_a_node_is_telling_is_left_to_it_for_as_long_as_it_gets_on() {
    let (store, clock) = shared_store();
    let (mut here, mut there) = (Bench::on(&store, &clock, 1), Bench::on(&store, &clock, 2));
    here.worker();
    let parent = here.start("parent");
    here.commit_and_hold(parent, children(100));
    assert_eq!(here.held().len(), FLIGHTS_MAX, "children begin, as many as may at one time");
    for _ in 0..20 {
        clock.pass_millis(900);
        here.sweep();
        assert!(there.sweep().is_empty(), "nobody else is told to");
        here.release_one();
    }
    // From here on it does not get on.
    clock.pass_secs(9);
    here.sweep();
    assert!(there.sweep().is_empty());
    clock.pass_secs(2);
    assert!(here.telling().is_empty(), "it lets go");
    clock.pass_secs(2);
    assert!(!there.sweep().is_empty(), "and another one takes over");
    assert_eq!(store.run_ids_sync().len(), 101);
    assert_eq!((store.outbox_sync(), here.node.status().healed), (vec![], 0));
}

#[test]
fn signals_do_not_overtake_one_that_could_not_be_told() {
    let (store, clock) = shared_store();
    let mut bench = Bench::on(&store, &clock, 1);
    bench.worker();
    let (source, target) = (bench.start("source"), bench.start("target"));
    bench.refused = Some(target);
    bench.commit(source, vec![signal(1, target)]);
    bench.refused = None;
    bench.commit(source, vec![signal(2, target)]);
    assert!(heard(&bench, target).is_empty(), "it is left to the sweep");
    for _ in 0..3 {
        clock.pass_secs(2);
        bench.sweep();
    }
    assert_eq!(heard(&bench, target), [1, 2]);
    bench.commit(source, vec![signal(3, target)]);
    assert_eq!(heard(&bench, target), [1, 2, 3], "what comes after is told at once");
    assert_eq!(store.outbox_sync(), []);
}

#[test]
fn what_a_dead_node_left_is_told_in_order_however_much_it_is() {
    let (store, clock) = shared_store();
    let mut dead = Bench::on(&store, &clock, 1);
    dead.worker();
    let (source, target) = (dead.start("source"), dead.start("target"));
    let count = 620;
    dead.held_runs.insert(target);
    for from in (1..=count).step_by(310) {
        let more = (from..(from + 310).min(count + 1)).map(|op| signal(op, target)).collect();
        dead.commit(source, more);
    }
    drop(dead);
    assert_eq!(store.outbox_sync().len(), count as usize);

    let mut bench = Bench::on(&store, &clock, 2);
    bench.worker();
    bench.lose(source);
    clock.pass_secs(2);
    let [(_, seqs)] = &bench.sweep()[..] else { panic!("one run has something to tell") };
    assert_eq!(seqs.len(), OUTBOX_CLAIM_MAX, "no more in one look");
    assert_eq!(heard(&bench, target).len(), OUTBOX_CLAIM_MAX);
    bench.commit(source, vec![signal(count + 1, target)]);
    assert_eq!(heard(&bench, target).len(), OUTBOX_CLAIM_MAX, "it does not overtake what is left");
    let mut looks = 1;
    while !store.outbox_sync().is_empty() {
        clock.pass_secs(1);
        bench.sweep();
        looks += 1;
        assert!(looks < 10, "the sweep gets on");
    }
    assert_eq!(heard(&bench, target), (1..=count + 1).collect::<Vec<_>>());
    bench.commit(source, vec![signal(count + 2, target)]);
    assert_eq!(heard(&bench, target).len(), count as usize + 2, "from here on it is told at once");
}

#[test]
fn the_end_of_a_parent_is_told_to_so_many_children_at_a_time() {
    let (store, clock) = shared_store();
    let mut bench = Bench::on(&store, &clock, 1);
    bench.worker();
    let parent = bench.start("parent");
    bench.commit(parent, children(200));
    bench.commit_and_hold(parent, vec![complete()]);
    let mut told = 0;
    while told < 200 {
        let under_way = bench.held().len();
        assert_eq!(under_way, FLIGHTS_MAX.min(200 - told), "after {told}");
        bench.release_one();
        told += 1;
    }
    let ended = |run: &RunId| bench.status(*run) == Some(RunStatus::Terminated);
    assert_eq!(store.run_ids_sync().iter().filter(|run| ended(run)).count(), 200);
    assert_eq!((store.outbox_sync(), bench.node.status().healed), (vec![], 0));
}

#[test]
fn a_request_follows_a_run_through_any_number_of_others() {
    let (store, clock) = shared_store();
    let mut bench = Bench::on(&store, &clock, 1);
    bench.worker();
    let (source, first) = (bench.start("source"), bench.start("target"));
    let mut last = first;
    for _ in 0..80 {
        bench.commit(last, vec![CommitCommand::ContinueAsNew(Box::<Continuation>::default())]);
        last = bench.successor(last).expect("a run follows");
    }
    bench.commit(source, vec![signal(1, first)]);
    assert_eq!(heard(&bench, last), [1]);
    assert_eq!(store.outbox_sync(), []);
}

#[test]
fn what_was_told_and_is_not_deleted_yet_is_not_told_again() {
    let (store, clock) = shared_store();
    let mut bench = Bench::on(&store, &clock, 1);
    bench.worker();
    let (source, target) = (bench.start("source"), bench.start("target"));
    bench.keeps_outbox = true;
    let parent = bench.start("parent");
    bench.commit(parent, children(10));
    bench.commit(source, vec![signal(1, target)]);
    assert_eq!(store.outbox_sync().len(), 10, "the request's row went with its answer");
    bench.keeps_outbox = false;
    clock.pass_secs(2);
    let reads = bench.reads;
    assert_eq!(bench.sweep().len(), 1);
    assert_eq!((store.outbox_sync(), bench.reads, bench.node.status().healed), (vec![], reads, 0));
}
