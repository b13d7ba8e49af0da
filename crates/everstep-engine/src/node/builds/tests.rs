//! Which worker a run is offered, and that nobody is offered what it cannot take.

use everstep_core::{
    ConflictPolicy, Duration, EventBody, NodeId, ReusePolicy, RunId, StartRun, Timestamp, WorkerInfo, Write,
};
use everstep_dispatch::{Delivery, HintQueue, TaskHint};
use everstep_store::{Append, ServesSteps, Verdict};
use uuid::Uuid;

use super::*;
use crate::node::{Input, NodeConfig};

struct Bench {
    node: Node,
    out: Vec<Output>,
    log: Vec<everstep_core::Event>,
}

fn hello(link: u64, build_id: &str, workflow_types: &[&str]) -> Hello {
    Hello {
        namespace: "default".to_owned(),
        task_queues: vec!["q".to_owned()],
        workflow_types: workflow_types.iter().map(|&t| t.to_owned()).collect(),
        worker: WorkerInfo { identity: format!("w{link}"), build_id: build_id.to_owned() },
        run_slots: 5,
        ..Hello::default()
    }
}

fn allowed(build_id: &str, continues: &str) -> AllowedBuild {
    let queue = QueueKey { namespace: "default".to_owned(), task_queue: "q".to_owned() };
    AllowedBuild { queue, build_id: build_id.to_owned(), continues: continues.to_owned() }
}

impl Bench {
    fn new() -> Self {
        let config = NodeConfig {
            node_id: NodeId::from_uuid(Uuid::from_u128(1)),
            lease: Duration::from_secs(10),
            shared: false,
            hints_shared: false,
            relays: false,
            seed: 3,
        };
        Self { node: Node::new(config), out: Vec::new(), log: Vec::new() }
    }

    fn step(&mut self, input: Input) {
        self.node.step(input, Timestamp::from_micros(1_000_000), &mut self.out);
    }

    fn worker(&mut self, link: u64, hello: Hello) {
        self.step(Input::Connect { link, hello: Box::new(hello) });
        self.step(Input::SessionOpened { link, until: Ok(Some(Timestamp::MAX)) });
    }

    /// Starts a run and gives the append.
    fn start(&mut self, workflow_type: &str) -> Append {
        let start = StartRun {
            namespace: "default".to_owned(),
            workflow_id: "w".to_owned(),
            workflow_type: workflow_type.to_owned(),
            task_queue: "q".to_owned(),
            request_id: "r".to_owned(),
            reuse: ReusePolicy::Allow,
            conflict: ConflictPolicy::Fail,
            ..StartRun::default()
        };
        self.step(Input::Start { request: 1, start: Box::new(start) });
        self.answer()
    }

    /// Everything that is asked of the store until an append, which is committed.
    fn answer(&mut self) -> Append {
        loop {
            let mut next = None;
            for output in std::mem::take(&mut self.out) {
                match output {
                    Output::FindStart { ticket, .. } => {
                        next = Some(Input::StartFound { ticket, record: Ok(Default::default()) });
                    }
                    Output::Append { ticket, append, .. } => {
                        self.log.extend(append.run.events.iter().cloned());
                        self.step(Input::Appended { ticket, verdict: Verdict::Committed });
                        return append;
                    }
                    Output::Load { run, after, .. } => {
                        let events = self.log.iter().filter(|e| e.seq > after).cloned().collect();
                        next = Some(Input::Loaded { run, after, events: Ok(events) });
                    }
                    _ => {}
                }
            }
            match next {
                Some(input) => self.step(input),
                None => panic!("nothing is appended"),
            }
        }
    }

    /// The run is hinted at; gives how often it is read, and whether a hint goes out again.
    fn hint(&mut self, run_id: RunId) -> (usize, bool) {
        self.out.clear();
        let queue = QueueKey { namespace: "default".to_owned(), task_queue: "q".to_owned() };
        let hint = TaskHint::new(run_id, HintQueue::runs(queue.clone()));
        let deliveries = vec![Delivery { hint, token: 7, attempt: 1 }];
        self.step(Input::Delivered { queue: everstep_dispatch::HintQueue::runs(queue), deliveries });
        let (mut loads, mut published) = (0, false);
        loop {
            let mut next = None;
            for output in std::mem::take(&mut self.out) {
                match output {
                    Output::Load { run, after, .. } => {
                        loads += 1;
                        let events = self.log.iter().filter(|e| e.seq > after).cloned().collect();
                        next = Some(Input::Loaded { run, after, events: Ok(events) });
                    }
                    Output::Publish(_) => published = true,
                    Output::Append { .. } => panic!("somebody took it"),
                    _ => {}
                }
            }
            match next {
                Some(input) => self.step(input),
                None => return (loads, published),
            }
        }
    }
}

fn attached(append: &Append) -> Option<(String, bool)> {
    append.run.events.iter().find_map(|event| match &event.body {
        EventBody::WorkerAttached { worker, pinned, .. } => Some((worker.identity.clone(), *pinned)),
        _ => None,
    })
}

fn task(append: &Append) -> Option<&TaskRow> {
    append.run.writes.iter().find_map(|write| match write {
        Write::TaskSet(task) => Some(task),
        _ => None,
    })
}

#[test]
fn a_run_goes_to_a_worker_that_has_its_type() {
    let mut bench = Bench::new();
    bench.worker(1, Hello { run_slots: 50, ..hello(1, "1", &["ping"]) });
    bench.worker(2, hello(2, "1", &["order"]));
    assert_eq!(
        attached(&bench.start("order")),
        Some(("w2".to_owned(), false)),
        "although the other has more room"
    );
}

#[test]
fn a_worker_without_a_list_of_types_has_them_all() {
    let mut bench = Bench::new();
    bench.worker(1, hello(1, "1", &[]));
    assert!(attached(&bench.start("order")).is_some());
}

#[test]
fn a_run_that_nobody_has_the_code_for_waits_and_its_hint_is_not_passed_round() {
    let mut bench = Bench::new();
    bench.worker(1, hello(1, "1", &["ping"]));
    let append = bench.start("order");
    assert_eq!(attached(&append), None);
    let row = task(&append).expect("it waits");
    assert_eq!((row.workflow_type.as_str(), row.build_id.as_str()), ("order", ""));
    let (loads, published) = bench.hint(append.run.run_id);
    assert!(loads <= 2 && !published, "read {loads} times, published {published}");
    let wants = bench.node.run_wants();
    assert!(wants.iter().all(|want| !want.fits(row)), "the sweep leaves it alone: {wants:?}");
    bench.worker(2, hello(2, "1", &["order"]));
    let wants = bench.node.run_wants();
    assert!(wants.iter().any(|want| want.fits(row) && want.impatient), "{wants:?}");
    assert!(bench.node.run_wants().iter().all(|want| !want.impatient), "once");
}

/// Starts a pinned run of build 1, whose worker is gone then.
fn pinned() -> (Bench, TaskRow) {
    let mut bench = Bench::new();
    let pins = Hello { pinned_types: vec!["order".to_owned()], ..hello(1, "1", &["order"]) };
    bench.worker(1, pins);
    let append = bench.start("order");
    assert_eq!(attached(&append), Some(("w1".to_owned(), true)));
    let run = Run::fold(append.run.run_id, append.run.events.iter()).unwrap().unwrap();
    assert_eq!(run.pin(), Some("1"));
    bench.step(Input::Disconnected { link: 1 });
    (bench, run.task())
}

#[test]
fn a_pinned_run_goes_to_its_build_or_to_one_that_continues_it() {
    let (mut bench, task) = pinned();
    assert_eq!(task.build_id, "1");
    bench.worker(2, hello(2, "2", &["order"]));
    assert_eq!(bench.node.link_for(&task), None);
    assert!(!bench.node.is_served_here(&task));
    bench.worker(3, hello(3, "1", &["order"]));
    assert_eq!(bench.node.link_for(&task), Some(3), "the same build");
    bench.step(Input::Disconnected { link: 3 });
    bench.worker(4, Hello { continues: vec!["1".to_owned()], ..hello(4, "3", &["order"]) });
    assert_eq!(bench.node.link_for(&task), Some(4), "it says that it continues it");
    bench.step(Input::Disconnected { link: 4 });
    bench.step(Input::AllowedBuilds(vec![allowed("9", "1"), allowed("2", "8")]));
    assert_eq!(bench.node.link_for(&task), None, "other builds are allowed");
}

#[test]
fn what_is_allowed_holds_at_once_and_what_waits_is_looked_for() {
    let (mut bench, task) = pinned();
    bench.worker(2, hello(2, "2", &["order"]));
    bench.node.run_wants();
    bench.out.clear();
    bench.step(Input::AllowedBuilds(vec![allowed("2", "1")]));
    assert_eq!(bench.node.link_for(&task), Some(2));
    assert!(bench.out.iter().any(|o| matches!(o, Output::FindBlocked { .. })), "blocked runs may be freed");
    let wants = bench.node.run_wants();
    assert!(wants.iter().any(|want| want.fits(&task) && want.impatient), "{wants:?}");
    bench.out.clear();
    bench.step(Input::AllowedBuilds(vec![allowed("2", "1")]));
    assert!(bench.out.is_empty() && bench.node.run_wants().iter().all(|want| !want.impatient), "nothing new");
}

#[test]
fn a_session_is_kept_with_what_it_serves() {
    let hello = Hello { continues: vec!["0".to_owned()], ..hello(1, "1", &["a"]) };
    let words = |word: &str| vec![word.to_owned()];
    let kept = Serves {
        task_queues: words("q"),
        workflow_types: words("a"),
        continues: words("0"),
        run_slots: hello.run_slots,
        steps: None,
    };
    assert_eq!(serves(&hello), kept);
    let none = Hello { run_slots: 0, ..hello };
    assert_eq!(serves(&none), Serves::default(), "it takes no runs");
    let steps = Some(crate::StepOffer { types: words("s"), slots: 4, ..Default::default() });
    let runs_steps = Some(ServesSteps { task_queues: words("q"), names: words("s"), slots: 4 });
    let hello = Hello { steps, ..none };
    assert_eq!(serves(&hello), Serves { steps: runs_steps, ..Serves::default() });
    assert_eq!(serves(&Hello { check_only: true, ..hello }), Serves::default(), "it only checks");
}
