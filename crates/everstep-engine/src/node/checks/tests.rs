//! Whose code is asked, and what the caller hears when nothing comes of it.

use everstep_core::{BlockKind, Blocked, NodeId, Timestamp, WorkerInfo};
use uuid::Uuid;

use super::*;
use crate::node::{Input, NodeConfig};
use crate::{Hello, WorkerIn};

struct Bench {
    node: Node,
    out: Vec<Output>,
}

fn id(n: u128) -> AskId {
    AskId::from_uuid(Uuid::from_u128(n))
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
        Self { node: Node::new(config), out: Vec::new() }
    }

    fn step(&mut self, input: Input) {
        self.node.step(input, Timestamp::from_micros(1_000_000), &mut self.out);
    }

    fn worker(&mut self, link: u64, build_id: &str, check_only: bool) {
        let hello = Hello {
            namespace: "default".to_owned(),
            task_queues: vec!["q".to_owned()],
            workflow_types: vec!["count".to_owned()],
            checks: true,
            check_only,
            worker: WorkerInfo { identity: format!("w{link}"), build_id: build_id.to_owned() },
            run_slots: if check_only { 0 } else { 1 },
            ..Hello::default()
        };
        self.step(Input::Connect { link, hello: Box::new(hello) });
        self.step(Input::SessionOpened { link, until: Ok(Some(Timestamp::MAX)) });
    }

    fn check(&mut self, n: u128, build_id: &str) {
        let target = CheckTarget {
            namespace: "default".to_owned(),
            build_id: build_id.to_owned(),
            workflow_type: "count".to_owned(),
        };
        let (run, wait) = (RunId::from_uuid(Uuid::from_u128(9)), Duration::from_secs(1));
        self.step(Input::Check { check: id(n), target, run, events: Arc::default(), wait });
    }

    fn say(&mut self, link: u64, n: u128, said: Said) {
        self.step(Input::FromWorker { link, message: WorkerIn::Answer { ask: id(n), seq: 0, said } });
    }

    /// Which links were asked since the last look.
    fn asked(&mut self) -> Vec<u64> {
        let links = self.out.iter().filter_map(|o| match o {
            Output::ToWorker { link, message: WorkerOut::Check { .. } } => Some(*link),
            _ => None,
        });
        let links = links.collect();
        self.out.retain(|o| !matches!(o, Output::ToWorker { message: WorkerOut::Check { .. }, .. }));
        links
    }

    /// What callers heard since the last look.
    fn heard(&mut self) -> Vec<Result<Checked, String>> {
        let heard = std::mem::take(&mut self.out).into_iter().filter_map(|o| match o {
            Output::Checked { result, .. } => Some(result.map_err(|e| e.to_string())),
            _ => None,
        });
        heard.collect()
    }
}

fn mismatch() -> Box<Blocked> {
    Box::new(Blocked {
        kind: BlockKind::Nondeterminism,
        at_seq: 3,
        expected: "a".to_owned(),
        produced: "b".to_owned(),
        source: String::new(),
        hint: String::new(),
        build_id: "1".to_owned(),
    })
}

#[test]
fn the_named_build_is_asked_and_one_that_only_checks_before_one_that_works() {
    let mut bench = Bench::new();
    bench.worker(1, "1", false);
    bench.worker(2, "2", false);
    bench.worker(3, "2", true);
    for (build, link) in [("1", 1), ("2", 3), ("", 3)] {
        bench.check(1, build);
        assert_eq!(bench.asked(), [link], "build '{build}'");
        bench.say(link, 1, Said::Passed);
        assert_eq!(bench.heard(), [Ok(Checked::Passed)]);
    }
    bench.check(2, "3");
    let heard = bench.heard();
    assert!(matches!(&heard[..], [Err(e)] if e.contains("build '3'")), "{heard:?}");
    assert!(bench.node.candidate("other", "2").is_none());
    assert_eq!(bench.node.candidate("default", "2").map(|c| c.workflow_types.len()), Some(1));
}

#[test]
fn checks_are_spread_over_the_workers_of_a_build() {
    let mut bench = Bench::new();
    bench.worker(1, "1", true);
    bench.worker(2, "1", true);
    for n in 1..=4 {
        bench.check(n, "1");
    }
    assert_eq!(bench.asked(), [1, 2, 1, 2]);
}

#[test]
fn only_who_was_asked_answers_and_only_once() {
    let mut bench = Bench::new();
    bench.worker(1, "1", true);
    bench.worker(2, "2", true);
    bench.check(1, "1");
    bench.say(2, 1, Said::Passed);
    bench.say(1, 2, Said::Passed);
    assert!(bench.heard().is_empty());
    bench.say(1, 1, Said::Mismatch(mismatch()));
    bench.say(1, 1, Said::Passed);
    assert_eq!(bench.heard(), [Ok(Checked::Mismatch(mismatch()))]);
    bench.check(3, "1");
    bench.say(1, 3, Said::Gone("newer".to_owned()));
    assert_eq!(bench.heard(), [Ok(Checked::Skipped("newer".to_owned()))]);
}

#[test]
fn a_check_ends_with_its_worker_its_caller_or_the_node() {
    let mut bench = Bench::new();
    bench.worker(1, "1", true);
    bench.check(1, "1");
    bench.check(2, "1");
    bench.step(Input::CheckOver(id(1)));
    bench.step(Input::CheckOver(id(1)));
    assert_eq!(bench.heard(), [Err(Error::NoAnswer.to_string())]);
    bench.step(Input::Disconnected { link: 1 });
    assert_eq!(bench.heard(), [Err(Error::CheckerLost.to_string())]);
    bench.worker(2, "1", true);
    bench.step(Input::Drain);
    bench.check(3, "1");
    assert!(bench.heard().contains(&Err(Error::Stopping.to_string())));
}

#[test]
fn a_worker_that_only_checks_is_given_nothing_else() {
    let mut bench = Bench::new();
    bench.worker(1, "1", true);
    assert!(bench.node.queues_with_credit().is_empty());
    assert!(bench.node.run_wants().is_empty());
    assert!(bench.node.ask_wants().is_empty());
    assert!(!bench.out.iter().any(|o| matches!(o, Output::FindBlocked { .. } | Output::Pull { .. })));
}
