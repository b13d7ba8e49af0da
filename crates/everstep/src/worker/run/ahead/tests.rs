//! A run task between a scripted server and real workflow code: what it says before the record, and what it does
//! when the record is another.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use everstep_core::{
    Actor, CommandId, CommitCommand, Event, EventBody, OpId, Payload, RunId, RunStarted, Seq, SessionId,
    Timestamp, TraceContext, WorkerCommit, WorkerInfo,
};
use everstep_proto::api::{self, worker_message};
use everstep_proto::wire;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::worker::asks::{Asks, Question};
use crate::worker::lease::Lease;
use crate::worker::outbox::Outbox;
use crate::worker::run::{RunMessage, RunTask};
use crate::worker::{Settings, workflow_factory};
use crate::{Ctx, StepError, WorkflowError};

const SECOND: i64 = 1_000_000;
pub(in crate::worker::run) const START: i64 = 1_700_000_000 * SECOND;

/// A task that holds a run, and the server's end of it.
pub(in crate::worker::run) struct Held {
    pub(in crate::worker::run) run: RunId,
    pub(in crate::worker::run) task: JoinHandle<()>,
    pub(in crate::worker::run) to_task: mpsc::UnboundedSender<RunMessage>,
    said: mpsc::UnboundedReceiver<worker_message::Message>,
    /// Weak: what is said ends with the task.
    outbox: Weak<Outbox>,
}

pub(in crate::worker::run) fn event(seq: Seq, at: i64, body: EventBody) -> Event {
    let command_id = CommandId::from_uuid(Uuid::nil());
    Event { seq, at: Timestamp::from_micros(at), epoch: 1, command_id, actor: Actor::System, body }
}

fn signal(seq: Seq) -> Event {
    let input = Payload::json("1");
    event(seq, START, EventBody::SignalReceived { name: "go".into(), signal_id: format!("s{seq}"), input })
}

/// A worker's claim and, before it, how the run began and what else has come in.
fn history(before: Vec<Event>) -> Vec<Event> {
    let started = RunStarted {
        namespace: "default".into(),
        workflow_id: "w".into(),
        workflow_type: "t".into(),
        task_queue: "default".into(),
        input: Payload::json("null"),
        request_id: "r".into(),
        run_timeout: None,
        seed: 5,
        trace: TraceContext::default(),
        ..RunStarted::default()
    };
    let mut events = vec![event(1, START, EventBody::RunStarted(Box::new(started)))];
    events[0].epoch = 0;
    events.extend(before);
    let seq = events.len() as u64 + 1;
    let session = SessionId::from_uuid(Uuid::from_u128(3));
    let worker = WorkerInfo { identity: "w".into(), build_id: "b".into() };
    events.push(event(seq, START, EventBody::WorkerAttached { session, worker, pinned: false }));
    events
}

pub(in crate::worker::run) fn hold<F, Fut>(before: Vec<Event>, workflow: F) -> Held
where
    F: Fn(Ctx, ()) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<u32, WorkflowError>> + Send + 'static,
{
    let run = RunId::from_uuid(Uuid::from_u128(7));
    let workflows = BTreeMap::from([("t".to_owned(), workflow_factory(workflow))]);
    let settings = Settings { workflows, ..Settings::of_tests() };
    let outbox = Arc::new(Outbox::default());
    let (to_stream, said) = mpsc::unbounded_channel();
    outbox.open(to_stream);
    let lease = Arc::new(Lease::new());
    lease.begin(Instant::now(), Duration::from_secs(3_600));
    let (seen, weak) = (Arc::new(AtomicU64::new(0)), Arc::downgrade(&outbox));
    let task = RunTask::new((run, 1), Arc::new(settings), outbox, lease, seen);
    let (to_task, messages) = mpsc::unbounded_channel();
    let events = history(before).iter().map(|e| wire::encode_event(e, false)).collect();
    Held { run, task: tokio::spawn(task.run(events, messages)), to_task, said, outbox: weak }
}

impl Held {
    fn ask(&self, at_least_seq: Seq) {
        let query = api::Query { name: "seen".into(), input: None };
        let ask = api::Ask {
            ask_id: at_least_seq.to_string(),
            run_id: self.run.to_string(),
            epoch: 1,
            at_least_seq,
            what: Some(api::ask::What::Query(query)),
            wait: Some(wire::encode_duration(everstep_core::Duration::from_secs(3_600))),
            ..api::Ask::default()
        };
        let asked = match Asks::default().gather(ask, &self.outbox.upgrade().unwrap()) {
            Some(Question::Owned(_, 1, asked)) => asked,
            _ => panic!("it is asked as the owner"),
        };
        self.to_task.send(RunMessage::Ask(asked)).unwrap();
    }

    /// The answer to the question, and after which event it holds.
    async fn answer(&mut self, at_least: Seq) -> (Seq, String) {
        let said = tokio::time::timeout(Duration::from_secs(60), self.said.recv()).await;
        let Ok(Some(worker_message::Message::Answer(answer))) = said else { panic!("{said:?}") };
        assert_eq!(answer.ask_id, at_least.to_string());
        let text = match answer.outcome.unwrap() {
            api::answer::Outcome::Value(value) => String::from_utf8(value.data.to_vec()).unwrap(),
            api::answer::Outcome::Gone(_) => "gone".to_owned(),
            other => panic!("{other:?}"),
        };
        (answer.seq, text)
    }

    pub(in crate::worker::run) async fn commit(&mut self) -> WorkerCommit {
        self.commit_within(Duration::from_secs(60)).await
    }

    /// The clock runs only when nothing else does: a task that says nothing is seen at once.
    pub(in crate::worker::run) async fn commit_within(&mut self, limit: Duration) -> WorkerCommit {
        match tokio::time::timeout(limit, self.said.recv()).await {
            Ok(Some(worker_message::Message::Commit(commit))) => wire::decode_commit(commit).unwrap().1,
            other => panic!("{other:?}"),
        }
    }

    /// Nothing is said for so long.
    pub(in crate::worker::run) async fn quiet(&mut self, time: Duration) {
        let said = tokio::time::timeout(time, self.said.recv()).await;
        assert!(said.is_err(), "{said:?}");
    }

    pub(in crate::worker::run) fn tell(&self, committed: u32, events: &[Event]) {
        let events = events.iter().map(|e| wire::encode_event(e, false)).collect();
        let run_id = self.run.to_string();
        let news = api::RunEvents { run_id, epoch: 1, events, committed };
        self.to_task.send(RunMessage::Events(news)).unwrap();
    }

    /// The commit as the server records it, told to the worker.
    fn record(&self, commit: &WorkerCommit, ends: EventBody) {
        let at = commit.ahead.map_or(START, Timestamp::as_micros);
        let mut events = vec![event(commit.seen + 1, at, ended(&commit.commands[0]))];
        events.push(event(commit.seen + 2, at, ends));
        self.tell(commit.number, &events);
    }
}

fn ended(command: &CommitCommand) -> EventBody {
    let CommitCommand::CompleteStep { step, name, attempt, elapsed, result } = command.clone() else {
        panic!("{command:?}")
    };
    EventBody::StepCompleted { step, name, attempt, elapsed, result }
}

fn kinds(commit: &WorkerCommit) -> Vec<&'static str> {
    let kind = |c: &CommitCommand| match c {
        CommitCommand::CompleteStep { .. } => "step",
        CommitCommand::CompleteRun { .. } => "end",
        CommitCommand::StartTimer { .. } => "timer",
        CommitCommand::Release { .. } => "release",
        other => panic!("{other:?}"),
    };
    commit.commands.iter().map(kind).collect()
}

async fn one_step(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    Ok(ctx.step("one", || async { Ok::<_, StepError>(1) }).await?)
}

async fn two_steps(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let one = ctx.step("one", || async { Ok::<_, StepError>(1) }).await?;
    Ok(ctx.step("two", move || async move { Ok::<_, StepError>(one + 1) }).await?)
}

async fn sleeps(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let one = ctx.step("one", || async { Ok::<_, StepError>(1) }).await?;
    ctx.sleep(Duration::from_secs(60)).await;
    Ok(one)
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_run_goes_with_its_last_step() {
    let mut held = hold(Vec::new(), one_step);
    let commit = held.commit().await;
    assert_eq!(kinds(&commit), ["step", "end"]);
    assert_eq!((commit.number, commit.seen), (1, 2));
    let at = commit.ahead.unwrap().as_micros();
    assert!((START..START + 5 * SECOND).contains(&at), "{at}");
    held.record(&commit, EventBody::RunCompleted { result: Payload::json("1"), unconsumed: Vec::new() });
    held.task.await.unwrap();
    assert!(held.said.recv().await.is_none(), "nothing is left to be said");
}

#[tokio::test(start_paused = true)]
async fn a_timer_goes_with_the_step_before_it_and_the_next_step_waits_for_the_record() {
    let mut held = hold(Vec::new(), sleeps);
    assert_eq!(kinds(&held.commit().await), ["step", "timer"]);

    let mut held = hold(Vec::new(), two_steps);
    let commit = held.commit().await;
    assert_eq!(kinds(&commit), ["step"], "the second step has not begun");
    assert!(commit.ahead.is_some());
    let mut first = event(3, commit.ahead.unwrap().as_micros(), ended(&commit.commands[0]));
    first.command_id = CommandId::of_worker(held.run, 1, 1);
    held.tell(1, &[first]);
    let commit = held.commit().await;
    assert_eq!((kinds(&commit), commit.seen), (vec!["step", "end"], 3));
}

#[tokio::test(start_paused = true)]
async fn a_refused_commit_keeps_the_step_and_gives_the_run_back() {
    for signal_is_heard_first in [false, true] {
        let mut held = hold(Vec::new(), one_step);
        let commit = held.commit().await;
        if signal_is_heard_first {
            held.tell(0, &[signal(3)]);
        }
        held.to_task.send(RunMessage::Rejected { number: commit.number }).unwrap();
        let again = held.commit().await;
        assert_eq!((kinds(&again), again.number, again.ahead), (vec!["step", "release"], 2, None));
        assert_eq!(again.commands[0], commit.commands[0], "the step is not run twice");
        let reason = everstep_core::DetachReason::Released(String::new());
        held.record(&again, EventBody::WorkerDetached { reason });
        held.task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_another_than_told_gives_the_run_back() {
    let mut held = hold(Vec::new(), two_steps);
    let commit = held.commit().await;
    // A server that does not know the field records the step under its own time.
    held.tell(1, &[event(3, START + 9 * SECOND, ended(&commit.commands[0]))]);
    assert_eq!(kinds(&held.commit().await), ["release"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_unanswered_is_said_again_on_a_new_connection() {
    let mut held = hold(Vec::new(), one_step);
    let commit = held.commit().await;
    held.to_task.send(RunMessage::Resend).unwrap();
    assert_eq!(held.commit().await, commit);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_sent_signals_does_not_go_ahead() {
    let mut before = signal(2);
    before.epoch = 0;
    let mut held = hold(vec![before], one_step);
    let commit = held.commit().await;
    assert_eq!((kinds(&commit), commit.ahead), (vec!["step"], None));
}

#[tokio::test(start_paused = true)]
async fn a_step_beside_others_does_not_go_ahead() {
    let mut held = hold(Vec::new(), |ctx: Ctx, (): ()| async move {
        let slow = ctx.step("slow", || async {
            std::future::pending::<()>().await;
            Ok::<_, StepError>(1)
        });
        let fast = ctx.step("fast", || async { Ok::<_, StepError>(1) });
        let (slow, _) = crate::join!(slow, fast);
        Ok(slow?)
    });
    let commit = held.commit().await;
    assert_eq!((kinds(&commit), commit.ahead), (vec!["step"], None));
    assert!(matches!(commit.commands[0], CommitCommand::CompleteStep { step: OpId(2), .. }));
}

struct Far;

impl crate::StepType for Far {
    const NAME: &'static str = "far";
    type Input = u32;
    type Output = u32;
}

/// Its end comes from somebody else, at any time: it would refuse what went ahead.
#[tokio::test(start_paused = true)]
async fn a_step_beside_a_queued_one_does_not_go_ahead() {
    let (step, name, input) = (OpId(1), "far".to_owned(), Payload::json("1"));
    let options = everstep_core::QueuedOptions::default();
    let scheduled = everstep_core::StepScheduled { step, name, input, options };
    let mut before = event(2, START, EventBody::StepScheduled(Box::new(scheduled)));
    before.epoch = 0;
    let mut held = hold(vec![before], |ctx: Ctx, (): ()| async move {
        let far = ctx.run::<Far>(1);
        let near = ctx.step("near", || async { Ok::<_, StepError>(1) });
        let (far, _) = crate::join!(far, near);
        Ok(far?)
    });
    let commit = held.commit().await;
    assert_eq!((kinds(&commit), commit.ahead), (vec!["step"], None));
    assert!(matches!(commit.commands[0], CommitCommand::CompleteStep { step: OpId(2), .. }));
}

/// Shows how many steps it knows the end of, and takes two.
async fn counts(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let seen = ctx.state(0);
    ctx.on_query("seen", {
        let seen = seen.clone();
        move |(): ()| Ok(seen.get())
    });
    for _ in 0..2 {
        ctx.step("one", || async { Ok::<_, StepError>(1) }).await?;
        seen.update(|n| *n += 1);
    }
    Ok(seen.get())
}

#[tokio::test(start_paused = true)]
async fn what_is_not_recorded_is_not_shown() {
    let mut held = hold(Vec::new(), counts);
    let commit = held.commit().await;
    assert!(commit.ahead.is_some(), "the code knows of the step already");
    held.ask(2);
    let silent = tokio::time::timeout(Duration::from_secs(3), held.said.recv()).await;
    assert!(silent.is_err(), "{silent:?}");
    let mut first = event(3, commit.ahead.unwrap().as_micros(), ended(&commit.commands[0]));
    first.command_id = CommandId::of_worker(held.run, 1, 1);
    held.tell(1, &[first]);
    assert_eq!(held.answer(2).await, (3, "1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_question_about_later_events_waits_for_them_and_is_given_up_with_the_run() {
    let mut held = hold(vec![signal(2)], counts);
    let commit = held.commit().await;
    assert_eq!((commit.ahead, commit.seen), (None, 3), "a run that is sent signals does not go ahead");
    held.ask(4);
    held.ask(3);
    assert_eq!(held.answer(3).await, (3, "0".to_owned()), "the other one waits");
    held.tell(1, &[event(4, START, ended(&commit.commands[0]))]);
    assert_eq!(held.answer(4).await, (4, "1".to_owned()));
    held.ask(9);
    tokio::task::yield_now().await;
    held.task.abort();
    loop {
        let said = held.said.recv().await.unwrap();
        let worker_message::Message::Answer(answer) = said else { continue };
        assert!(matches!(answer.outcome, Some(api::answer::Outcome::Gone(_))), "{answer:?}");
        break;
    }
}
