//! Who is asked, who else when nothing comes of it, and what the asker hears in the end.

mod updates;

use everstep_core::{
    ConflictPolicy, Epoch, NodeId, Payload, QueueKey, ReusePolicy, RunId, Seq, StartRun, TraceContext,
    WorkerInfo,
};
use everstep_dispatch::Notice;
use everstep_store::{Append, Verdict};
use uuid::Uuid;

use super::*;
use crate::node::{Input, NodeConfig};
use crate::{Hello, WorkerIn};

struct Bench {
    node: Node,
    out: Vec<Output>,
}

fn ask(n: u128) -> AskId {
    AskId::from_uuid(Uuid::from_u128(n))
}

fn run() -> RunId {
    RunId::from_uuid(Uuid::from_u128(77))
}

fn target(run_id: RunId, tail: Seq) -> AskTarget {
    let queue = QueueKey { namespace: "default".to_owned(), task_queue: "q".to_owned() };
    AskTarget { run_id, queue, workflow_type: "count".to_owned(), build_id: "b1".to_owned(), tail }
}

/// The code has something else than the history.
fn unfit(produced: &str) -> Said {
    Said::Mismatch(Box::new(everstep_core::Blocked {
        kind: everstep_core::BlockKind::Nondeterminism,
        at_seq: 1,
        expected: String::new(),
        produced: produced.to_owned(),
        source: String::new(),
        hint: String::new(),
        build_id: String::new(),
    }))
}

fn value() -> Said {
    Said::Value(Payload::json("1"))
}

/// As much history as a target with this tail needs; the node does not look into it.
fn history(tail: Seq) -> Vec<Event> {
    let event = |seq| Event {
        seq,
        at: Timestamp::from_micros(0),
        epoch: 0,
        command_id: everstep_core::CommandId::from_uuid(Uuid::from_u128(1)),
        actor: everstep_core::Actor::System,
        body: everstep_core::EventBody::CancelRequested { reason: String::new() },
    };
    (1..=tail).map(event).collect()
}

impl Bench {
    fn new(relays: bool) -> Self {
        let config = NodeConfig {
            node_id: NodeId::from_uuid(Uuid::from_u128(1)),
            lease: Duration::from_secs(10),
            shared: relays,
            hints_shared: relays,
            relays,
            seed: 3,
        };
        Self { node: Node::new(config), out: Vec::new() }
    }

    fn step(&mut self, input: Input) {
        self.node.step(input, Timestamp::from_micros(1_000_000), &mut self.out);
    }

    /// A worker of the build connects.
    fn worker(&mut self, link: u64, build_id: &str) {
        self.worker_with(link, build_id, true);
    }

    fn worker_with(&mut self, link: u64, build_id: &str, asks: bool) {
        let hello = Hello {
            namespace: "default".to_owned(),
            task_queues: vec!["q".to_owned()],
            workflow_types: vec!["count".to_owned()],
            asks,
            worker: WorkerInfo { identity: format!("w{link}"), build_id: build_id.to_owned() },
            run_slots: 1,
            resume: None,
            held: Vec::new(),
            ..Hello::default()
        };
        self.step(Input::Connect { link, hello: Box::new(hello) });
        self.step(Input::SessionOpened { link, until: Ok(Some(Timestamp::MAX)) });
    }

    fn ask(&mut self, n: u128, target: AskTarget) {
        let query = Query { kind: AskKind::Query, name: "q".to_owned(), input: Payload::default() };
        self.step(Input::Ask { ask: ask(n), target, query, wait: Duration::from_secs(10) });
    }

    fn load(&mut self, n: u128, tail: Seq) {
        self.step(Input::LoadedForAsk { ask: ask(n), events: Ok(history(tail)) });
    }

    fn say(&mut self, link: u64, n: u128, seq: Seq, said: Said) {
        self.step(Input::FromWorker { link, message: WorkerIn::Answer { ask: ask(n), seq, said } });
    }

    /// What was asked of workers since the last look: link, question, epoch, events.
    fn asked(&mut self) -> Vec<(u64, AskId, Epoch, usize)> {
        let asked = |output: &Output| match output {
            Output::ToWorker { link, message: WorkerOut::Ask { ask, epoch, events, .. } } => {
                Some((*link, *ask, *epoch, events.len()))
            }
            _ => None,
        };
        let found = self.out.iter().filter_map(asked).collect();
        self.out.retain(|o| asked(o).is_none());
        found
    }

    fn reads(&mut self) -> usize {
        let all = self.out.len();
        self.out.retain(|o| !matches!(o, Output::LoadForAsk { .. }));
        all - self.out.len()
    }

    fn answer(&mut self) -> Option<Result<Answer, Error>> {
        let at = self.out.iter().position(|o| matches!(o, Output::Answered { .. }))?;
        match self.out.remove(at) {
            Output::Answered { result, .. } => Some(result),
            _ => None,
        }
    }

    fn failure(&mut self) -> String {
        match self.answer() {
            Some(Err(Error::QueryFailed { kind, .. })) => kind,
            Some(Err(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    /// A run that a worker which is connected here gets: its id, its epoch and its tail.
    fn started(&mut self) -> (RunId, Epoch, Seq) {
        let start = StartRun {
            namespace: "default".to_owned(),
            workflow_id: "w".to_owned(),
            workflow_type: "count".to_owned(),
            task_queue: "q".to_owned(),
            input: Payload::default(),
            request_id: "r".to_owned(),
            run_timeout: None,
            reuse: ReusePolicy::Allow,
            conflict: ConflictPolicy::Fail,
            trace: TraceContext::default(),
            identity: String::new(),
            ..StartRun::default()
        };
        self.step(Input::Start { request: 1, start: Box::new(start) });
        let appends = |o: &Output| match o {
            Output::Append { ticket, append, .. } => Some((*ticket, append.clone())),
            _ => None,
        };
        let appended: Option<(u64, Append)> = self.out.iter().find_map(appends);
        let (ticket, append) = appended.expect("the start is appended");
        self.step(Input::Appended { ticket, verdict: Verdict::Committed });
        let last = append.run.events.last().expect("an append has events");
        (append.run.run_id, last.epoch, last.seq)
    }
}

#[test]
fn the_owner_is_asked_first_and_another_when_it_lets_go() {
    let mut bench = Bench::new(false);
    bench.worker(5, "b1");
    let (run, epoch, tail) = bench.started();
    bench.ask(1, target(run, tail));
    assert_eq!((bench.asked(), bench.reads()), (vec![(5, ask(1), epoch, 0)], 0));
    bench.say(5, 1, tail, value());
    assert_eq!(bench.answer().unwrap().unwrap(), Answer { value: Payload::json("1"), seq: tail });
    bench.ask(2, target(run, tail));
    assert_eq!(bench.asked().len(), 1);
    bench.say(5, 2, 0, Said::Gone(String::new()));
    assert_eq!((bench.asked().len(), bench.reads()), (0, 1), "from its history, then");
    bench.load(2, tail);
    assert_eq!(bench.asked(), [(5, ask(2), 0, tail as usize)]);
    bench.say(5, 2, tail, value());
    assert!(bench.answer().unwrap().is_ok());
}

#[test]
fn an_owner_that_lacks_events_is_told_of_them_and_one_that_cannot_answer_is_not_asked() {
    let mut bench = Bench::new(true);
    bench.worker(5, "b1");
    let (run, _, tail) = bench.started();
    bench.out.clear();
    bench.ask(1, target(run, tail + 1));
    assert_eq!(bench.asked().len(), 1);
    let reads = |o: &Output| matches!(o, Output::Load { after, .. } if *after == tail);
    assert!(bench.out.iter().any(reads), "{:?}", bench.out);
    let mut old = Bench::new(false);
    old.worker_with(5, "b1", false);
    let (run, _, tail) = old.started();
    old.ask(1, target(run, tail));
    assert_eq!((old.asked().len(), old.reads()), (0, 0));
    old.worker(6, "b1");
    assert_eq!(old.reads(), 1, "the new one gets the history");
}

#[test]
fn an_answer_that_knows_too_little_or_comes_from_elsewhere_is_none() {
    let mut bench = Bench::new(false);
    bench.worker(5, "b1");
    bench.worker(6, "b2");
    bench.ask(1, target(run(), 4));
    bench.load(1, 4);
    assert_eq!(bench.asked(), [(5, ask(1), 0, 4)], "who has the build that ran it is asked first");
    bench.say(6, 1, 4, value());
    bench.say(5, 2, 4, value());
    assert!(bench.answer().is_none());
    bench.say(5, 1, 3, value());
    assert!(bench.answer().is_none());
    assert_eq!(bench.reads(), 2, "asked again");
    bench.load(1, 4);
    bench.say(5, 1, 5, value());
    assert_eq!(bench.answer().unwrap().unwrap().seq, 5);
}

#[test]
fn code_that_does_not_fit_is_not_asked_twice() {
    let mut bench = Bench::new(false);
    bench.worker(5, "b1");
    bench.worker(6, "b1");
    bench.worker(7, "b2");
    for answered in [true, false] {
        let n = u128::from(answered);
        bench.ask(n, target(run(), 1));
        bench.load(n, 1);
        bench.say(5, n, 0, unfit("no"));
        bench.load(n, 1);
        assert_eq!(bench.asked().last().map(|a| a.0), Some(7), "another build, not another worker");
        bench.say(7, n, 1, if answered { value() } else { unfit("nor this") });
        match answered {
            true => assert!(bench.answer().unwrap().is_ok()),
            false => assert_eq!(bench.failure(), "Nondeterminism"),
        }
    }
}

#[test]
fn lost_workers_are_replaced_until_the_question_looks_deadly() {
    let mut bench = Bench::new(false);
    for link in 5..8 {
        bench.worker(link, "b1");
    }
    bench.ask(1, target(run(), 1));
    for link in 5..8 {
        bench.load(1, 1);
        assert_eq!(bench.asked().first().map(|a| a.0), Some(link));
        assert!(bench.answer().is_none());
        bench.step(Input::Disconnected { link });
    }
    assert_eq!(bench.failure(), "WorkerLost");
}

#[test]
fn a_worker_has_eight_histories_at_a_time_and_the_rest_wait_their_turn() {
    let mut bench = Bench::new(false);
    bench.worker(5, "b1");
    for n in 1..=20 {
        bench.ask(n, target(run(), 1));
    }
    assert_eq!(bench.reads(), REPLAYS_MAX);
    bench.load(1, 1);
    bench.say(5, 1, 1, value());
    assert_eq!(bench.reads(), 1);
    // One that nobody waits for makes room too.
    bench.step(Input::AskOver(ask(2)));
    assert_eq!(bench.reads(), 1);
    bench.out.clear();
    bench.step(Input::AskOver(ask(20)));
    assert!(matches!(bench.answer(), Some(Err(Error::Overloaded))), "there is a worker");
    assert_eq!(bench.reads(), 0);
    bench.step(Input::Disconnected { link: 5 });
    bench.step(Input::AskOver(ask(19)));
    assert!(matches!(bench.answer(), Some(Err(Error::NoWorker { .. }))));
}

#[test]
fn a_node_holds_a_thousand_questions_and_none_when_it_stops() {
    let mut bench = Bench::new(false);
    for n in 1..=ASKS_MAX as u128 {
        bench.ask(n, target(run(), 1));
    }
    assert!(bench.answer().is_none());
    bench.ask(0, target(run(), 1));
    assert!(matches!(bench.answer(), Some(Err(Error::Overloaded))));
    bench.step(Input::Drain);
    for _ in 1..=ASKS_MAX {
        assert!(matches!(bench.answer(), Some(Err(Error::Stopping))));
    }
    bench.ask(0, target(run(), 1));
    assert!(matches!(bench.answer(), Some(Err(Error::Stopping))));
}

#[test]
fn a_leaving_worker_speaks_only_for_its_own_runs() {
    let mut bench = Bench::new(false);
    bench.worker(5, "b1");
    let (run, epoch, tail) = bench.started();
    bench.step(Input::FromWorker { link: 5, message: WorkerIn::Draining });
    bench.ask(1, target(run, tail));
    assert_eq!(bench.asked(), [(5, ask(1), epoch, 0)]);
    bench.ask(2, target(self::run(), 1));
    assert_eq!(bench.reads(), 0);
}

#[test]
fn a_question_without_a_worker_here_is_left_for_the_others_once() {
    let mut bench = Bench::new(true);
    bench.ask(1, target(run(), 4));
    let row = bench.out.iter().find_map(|o| match o {
        Output::RelayAsk(row) => Some((**row).clone()),
        _ => None,
    });
    let row = row.expect("it is left");
    assert_eq!((row.ask, row.at_least, row.wait), (ask(1), 4, Duration::from_secs(10)));
    bench.out.clear();
    let answer = AskAnswer { seq: 6, outcome: AskOutcome::Value(Payload::json("2")) };
    bench.step(Input::AskRelayed { ask: ask(1), answer });
    assert!(bench.out.iter().any(|o| matches!(o, Output::RelayOver(_))));
    assert_eq!(bench.answer().unwrap().unwrap().seq, 6);
    // A worker that comes here is asked as well; whoever is first answers.
    bench.ask(2, target(run(), 4));
    bench.worker(5, "b1");
    bench.load(2, 4);
    assert_eq!(bench.asked(), [(5, ask(2), 0, 4)]);
    bench.out.clear();
    bench.step(Input::Disconnected { link: 5 });
    assert!(!bench.out.iter().any(|o| matches!(o, Output::RelayAsk(_))), "it is there already");
    bench.step(Input::AskOver(ask(2)));
    assert!(matches!(bench.answer(), Some(Err(Error::NoWorker { .. }))));
}

#[test]
fn questions_of_others_are_looked_for_and_answered_where_they_were_left() {
    let mut bench = Bench::new(true);
    let other = NodeId::from_uuid(Uuid::from_u128(2));
    let notice = Notice { run_id: run(), tail: 4, closed: false, node: other, asked: true };
    bench.step(Input::Noticed(notice));
    assert!(!bench.out.iter().any(|o| matches!(o, Output::FindAsks(_))), "nobody here could answer");
    bench.worker(5, "b1");
    bench.step(Input::Noticed(notice));
    assert!(bench.out.iter().any(|o| matches!(o, Output::FindAsks(wants) if wants.len() == 1)));
    let AskTarget { run_id, queue, workflow_type, build_id, tail } = target(run(), 4);
    let row = AskRow {
        kind: AskKind::Query,
        ask: ask(9),
        run_id,
        queue,
        workflow_type,
        build_id,
        at_least: tail,
        name: "q".to_owned(),
        input: Payload::default(),
        wait: Duration::from_secs(1),
    };
    bench.step(Input::AsksFound(vec![row.clone(), row.clone()]));
    assert_eq!(bench.reads(), 1, "one question, however often it is found");
    bench.load(9, 4);
    bench.say(5, 9, 4, value());
    let answered = |o: &Output| matches!(o, Output::AnswerAsk { answer: AskAnswer { seq: 4, .. }, .. });
    assert!(bench.out.iter().any(answered) && bench.answer().is_none());
    // Without a worker it is given up, for another node to take.
    bench.step(Input::AsksFound(vec![row]));
    bench.step(Input::Disconnected { link: 5 });
    assert!(bench.node.asks.open.is_empty() && bench.node.asks.replays.is_empty());
}
