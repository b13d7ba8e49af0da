//! One run: its machine, its running attempts, its unanswered commits.

mod ahead;
mod asks;
mod attempts;
mod doubt;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use everstep_core::{
    BlockKind, Blocked, CommitCommand, DetachReason, Epoch, Event, EventBody, OpId, Payload, RetryPolicy,
    RunId, Seq, Timestamp, WorkerCommit, limits,
};
use everstep_proto::api::{self, worker_message};
use everstep_proto::{history, wire};
use opentelemetry::Context;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant as TokioInstant;

use self::ahead::Ahead;
use self::asks::{Answering, handled};
pub(crate) use self::attempts::guarded;
use self::attempts::{AttemptEnd, Running, Waiting};
use self::doubt::given_up;
use super::Settings;
use super::asks::Asked;
use super::lease::Lease;
use super::outbox::Outbox;
use crate::ctx::{Known, end_of};
use crate::machine::{Machine, Obstacle, Work};
use crate::trace;

/// From the session to a run.
#[derive(Debug)]
pub(super) enum RunMessage {
    Events(api::RunEvents),
    Rejected { number: u32 },
    Ask(Asked),
    Resend,
    Drain,
}

/// A run that this worker holds.
pub(super) struct RunTask {
    run: RunId,
    epoch: Epoch,
    settings: Arc<Settings>,
    outbox: Arc<Outbox>,
    lease: Arc<Lease>,
    seen: Arc<AtomicU64>,
    machine: Option<Machine>,
    workflow: String,
    parent: Context,
    next_number: u32,
    unacked: VecDeque<Unacked>,
    /// Results that were sent and whose event comes without them.
    results: HashMap<OpId, Payload>,
    attempts: JoinSet<AttemptEnd>,
    running: BTreeMap<OpId, Running>,
    policies: HashMap<OpId, RetryPolicy>,
    /// Guarded attempts that begin when their start is recorded.
    starting: BTreeMap<OpId, Work>,
    /// Attempts that wait for their instant or for the lease.
    waiting: BTreeMap<OpId, Waiting>,
    /// The end of a step that the workflow knows before it is recorded.
    ahead: Option<Ahead>,
    /// Questions that wait for an answer.
    asks: VecDeque<Asked>,
    answering: Option<Answering>,
    /// Others have told the run something since it came here, or before.
    called: bool,
    idle_since: Option<TokioInstant>,
    /// The commit that lets go of the run is under way.
    leaving: bool,
    /// Blocked or released: the machine stands at an event that it cannot follow.
    given_up: bool,
    draining: bool,
    /// Database time minus this process's, as far as events tell.
    clock: Option<(i64, Instant)>,
    /// The connection on which everything unanswered has been said.
    generation: u64,
}

/// A commit that the server has not acknowledged.
#[derive(Clone)]
struct Unacked {
    number: u32,
    /// What the workflow had applied when it was made. Kept for a resend: a `Park` that claimed to have seen
    /// what came since would leave the run without anybody to act on it.
    seen: Seq,
    commands: Vec<CommitCommand>,
    /// See [`WorkerCommit::ahead`].
    ahead: Option<Timestamp>,
}

impl RunTask {
    pub(super) fn new(
        (run, epoch): (RunId, Epoch),
        settings: Arc<Settings>,
        outbox: Arc<Outbox>,
        lease: Arc<Lease>,
        seen: Arc<AtomicU64>,
    ) -> Self {
        let generation = outbox.generation();
        Self {
            run,
            epoch,
            settings,
            outbox,
            lease,
            seen,
            machine: None,
            workflow: String::new(),
            parent: Context::new(),
            next_number: 1,
            unacked: VecDeque::new(),
            results: HashMap::new(),
            attempts: JoinSet::new(),
            running: BTreeMap::new(),
            policies: HashMap::new(),
            starting: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ahead: None,
            asks: VecDeque::new(),
            answering: None,
            called: false,
            idle_since: None,
            leaving: false,
            given_up: false,
            draining: false,
            clock: None,
            generation,
        }
    }

    /// Replays the history, then goes on until the run is no longer this worker's.
    pub(super) async fn run(
        mut self,
        history: Vec<history::Event>,
        mut messages: mpsc::UnboundedReceiver<RunMessage>,
    ) {
        if !self.replay(history) {
            return;
        }
        self.go_on();
        let lease = Arc::clone(&self.lease);
        let mut lease_over = std::pin::pin!(lease.over());
        loop {
            let next = self.next_instant();
            tokio::select! {
                biased;
                () = lease_over.as_mut() => {
                    // Whatever the connection does: what runs past the lease may run elsewhere already.
                    tracing::warn!(run_id = %self.run, "the lease ended: run given up");
                    return;
                }
                outcome = handled(&mut self.answering), if self.answering.is_some() => self.answered(outcome),
                message = messages.recv(), if self.answering.is_none() => match message {
                    Some(message) => {
                        if everstep_fault::ENABLED
                            && self.acknowledges(&message)
                            && everstep_fault::at("worker.reported").await.is_err()
                        {
                            self.release("a failpoint".to_owned());
                        }
                        if !self.hear(message) {
                            return;
                        }
                    }
                    None => return,
                },
                Some(end) = self.attempts.join_next(), if !self.attempts.is_empty() && self.answering.is_none() => match end {
                    Ok(end) => self.attempt_ended(end),
                    Err(error) => tracing::debug!(%error, "attempt ended without a result"),
                },
                () = sleep_until(next), if next.is_some() => self.instant_came(),
            }
            // Whatever came with it is one activation each, and one look at what to do.
            while self.answering.is_none()
                && let Ok(message) = messages.try_recv()
            {
                if !self.hear(message) {
                    return;
                }
            }
            self.go_on();
            self.answer_next();
        }
    }

    /// Applies the recorded history. False when the run cannot go on here.
    fn replay(&mut self, wire_events: Vec<history::Event>) -> bool {
        let mut events = Vec::with_capacity(wire_events.len());
        for event in wire_events {
            match wire::decode_event(event) {
                Ok(decoded) => events.push(decoded.event),
                Err(error) => {
                    self.release(format!("the history is not understood: {error}"));
                    return true;
                }
            }
        }
        let Some((first, EventBody::RunStarted(start))) = events.first().map(|e| (e, &e.body)) else {
            self.release("the history does not begin with RunStarted".to_owned());
            return true;
        };
        let Some(workflow) = self.settings.workflows.get(&start.workflow_type) else {
            let known = self.settings.workflows.keys().cloned().collect::<Vec<_>>().join(", ");
            self.block(Blocked {
                kind: BlockKind::Nondeterminism,
                at_seq: 1,
                expected: format!("workflow type '{}'", start.workflow_type),
                produced: format!("a worker that has: {known}"),
                source: String::new(),
                hint: "register the workflow type, or start the run on the queue of a worker that has it"
                    .to_owned(),
                build_id: String::new(),
            });
            return true;
        };
        self.workflow.clone_from(&start.workflow_type);
        self.parent = trace::run_context(self.run, start);
        self.machine = Some(Machine::new(self.run, start, first.at, workflow, Known::of(&events)));
        // What came in while nobody held the run is new to the code, and so is all of a run nobody held yet.
        let let_go =
            |e: &Event| matches!(e.body, EventBody::WorkerDetached { .. } | EventBody::RunBlocked(_));
        let replayed = events.iter().rposition(let_go).map_or(0, |i| i + 1);
        for (i, event) in events.iter().enumerate() {
            if event.seq != i as u64 + 1 {
                self.release(format!("event {} of the history stands at place {}", event.seq, i + 1));
                return true;
            }
            if i == replayed
                && let Some(machine) = &mut self.machine
            {
                machine.end_replay();
            }
            if !self.apply(event) {
                return true;
            }
        }
        if let Some(machine) = &mut self.machine {
            machine.end_replay();
        }
        self.check_begun();
        true
    }

    /// Applies one event. False when the workflow met an obstacle.
    fn apply(&mut self, event: &Event) -> bool {
        let Some(machine) = &mut self.machine else { return true };
        let applied = machine.apply(event);
        self.seen.store(event.seq, Ordering::Release);
        self.clock = Some((event.at.as_micros(), Instant::now()));
        self.called |= matches!(
            event.body,
            EventBody::SignalReceived { .. }
                | EventBody::UpdateAccepted { .. }
                | EventBody::CancelRequested { .. }
                | EventBody::StepResolved(_)
        );
        match applied {
            Ok(()) => true,
            Err(obstacle) => {
                self.meet(obstacle);
                false
            }
        }
    }

    /// The workflow cannot go on here.
    fn meet(&mut self, obstacle: Obstacle) {
        match obstacle {
            Obstacle::Blocked(blocked) => self.block(*blocked),
            Obstacle::Panicked(message) => {
                tracing::error!(run_id = %self.run, message, "workflow code panicked");
                self.release(message);
            }
        }
    }

    fn hear(&mut self, message: RunMessage) -> bool {
        match message {
            RunMessage::Events(events) => return self.events(events),
            RunMessage::Rejected { number } => {
                // Something came in while the run was being parked: it stays.
                self.unacked.retain(|c| c.number != number);
                if self.fell_back(number) {
                    return true;
                }
                self.leaving = self.given_up;
                self.idle_since = None;
            }
            RunMessage::Resend => {
                self.generation = self.outbox.generation();
                let unacked: Vec<_> = self.unacked.iter().cloned().collect();
                for commit in unacked {
                    self.send(commit);
                }
            }
            RunMessage::Ask(asked) => self.asks.push_back(asked),
            RunMessage::Drain => self.draining = true,
        }
        true
    }

    /// Whether a step's result is known to be recorded with this message.
    fn acknowledges(&self, message: &RunMessage) -> bool {
        let news = match message {
            RunMessage::Events(news) => news,
            _ => return false,
        };
        self.unacked.front().is_some_and(|c| c.number <= news.committed)
    }

    /// News of the run. False when it is no longer this worker's.
    fn events(&mut self, news: api::RunEvents) -> bool {
        while self.unacked.front().is_some_and(|c| c.number <= news.committed) {
            self.unacked.pop_front();
        }
        for event in news.events {
            let seen = self.seen.load(Ordering::Acquire);
            if event.seq <= seen {
                continue;
            }
            // A run that was given up is not followed any more; only its end is awaited.
            if event.seq != seen + 1 && !self.given_up {
                self.release(format!("event {} came after event {seen}", event.seq));
                return true;
            }
            let mut decoded = match wire::decode_event(event) {
                Ok(decoded) => decoded,
                Err(_) if self.given_up => continue,
                Err(error) => {
                    self.release(format!("an event is not understood: {error}"));
                    return true;
                }
            };
            if self.was_told(&decoded.event) {
                continue;
            }
            if let EventBody::StepCompleted { step, result, .. } = &mut decoded.event.body {
                let sent = self.results.remove(step);
                if decoded.payload_omitted {
                    let Some(sent) = sent else {
                        self.release(
                            "the server left out a result that this worker does not have".to_owned(),
                        );
                        return true;
                    };
                    *result = sent;
                }
            }
            let gone = match &decoded.event.body {
                EventBody::WorkerDetached { reason } => {
                    tracing::debug!(run_id = %self.run, parked = matches!(reason, DetachReason::Parked), "let go");
                    true
                }
                EventBody::RunBlocked(_) => true,
                body => body.is_terminal(),
            };
            if gone {
                return false;
            }
            if self.given_up {
                continue;
            }
            if !self.apply(&decoded.event) {
                return true;
            }
            self.note_guarded(&decoded.event);
        }
        self.check_ahead(news.committed);
        true
    }

    /// Does what the workflow wants and nobody does yet.
    fn go_on(&mut self) {
        if self.leaving {
            return;
        }
        let (commands, attempts) = self.wanted();
        for attempt in attempts {
            self.begin(attempt);
        }
        if !commands.is_empty() {
            self.commit(commands);
        }
        self.leave_if_idle();
    }

    /// What the workflow wants and nobody does yet: to be recorded, and to be run.
    fn wanted(&mut self) -> (Vec<CommitCommand>, Vec<Work>) {
        let (mut commands, mut attempts) = (Vec::new(), Vec::new());
        for work in self.machine.as_mut().map(Machine::take_work).unwrap_or_default() {
            match work {
                Work::StartTimer { id, delay } => {
                    commands.push(CommitCommand::StartTimer { timer: id, delay: delay.into() });
                }
                Work::MarkVersion { change_id, version } => {
                    commands.push(CommitCommand::MarkVersion { change_id, version });
                }
                Work::Command(command) => commands.push(*command),
                Work::CancelTimer { id } => commands.push(CommitCommand::CancelTimer { timer: id }),
                Work::Finish { outcome, unconsumed } => {
                    self.leaving = true;
                    commands.push(end_of(outcome, unconsumed));
                }
                Work::GiveUp { id, name, attempt, failure } => {
                    commands.push(given_up(id, name, attempt, failure))
                }
                attempt => match self.start_of(attempt) {
                    Ok(start) => commands.push(start),
                    Err(attempt) => attempts.push(*attempt),
                },
            }
        }
        (commands, attempts)
    }

    /// The next instant at which something has to be done.
    fn next_instant(&self) -> Option<TokioInstant> {
        if self.leaving {
            return None;
        }
        let shows = self.running.values().filter_map(|r| r.show_at);
        let waits = self.waiting.values().map(|w| w.at);
        let park = self.idle_since.map(|at| at + self.settings.park_after);
        shows.chain(waits).chain(park).min()
    }

    fn instant_came(&mut self) {
        let now = TokioInstant::now();
        let mut commands = Vec::new();
        for (&step, running) in &mut self.running {
            if running.show_at.is_some_and(|at| at <= now) {
                running.show_at = None;
                let (name, attempt) = (running.name.clone(), running.attempt);
                commands.push(CommitCommand::StartStep { step, name, attempt, in_doubt: None });
            }
        }
        if !commands.is_empty() {
            self.commit(commands);
        }
        let due: Vec<OpId> = self.waiting.iter().filter(|(_, w)| w.at <= now).map(|(&id, _)| id).collect();
        for id in due {
            if let Some(waiting) = self.waiting.remove(&id) {
                self.begin_again(waiting);
            }
        }
    }

    /// Lets go of a run that only waits: parked when nothing is under way, given back when the worker stops.
    fn leave_if_idle(&mut self) {
        let waits = self.machine.as_ref().is_some_and(Machine::is_waiting);
        let soon = TokioInstant::now() + self.settings.park_after;
        let attempt_soon = self.waiting.values().any(|w| w.at <= soon || !w.has_timer);
        let under_way = !self.starting.is_empty() || self.waiting.values().any(|w| w.started);
        let busy = !self.running.is_empty() || !self.unacked.is_empty() || under_way;
        if self.leaving || !waits || busy || (attempt_soon && !self.draining) {
            self.idle_since = None;
            return;
        }
        if self.draining {
            let command = if self.waiting.is_empty() {
                CommitCommand::Park
            } else {
                CommitCommand::Release { reason: String::new() }
            };
            return self.leave(command);
        }
        let since = *self.idle_since.get_or_insert_with(TokioInstant::now);
        if since.elapsed() >= self.settings.park_after {
            self.idle_since = None;
            self.leave(CommitCommand::Park);
        }
    }

    fn leave(&mut self, command: CommitCommand) {
        self.leaving = true;
        self.commit(vec![command]);
    }

    fn block(&mut self, mut blocked: Blocked) {
        tracing::error!(
            run_id = %self.run, expected = blocked.expected, produced = blocked.produced, source = blocked.source,
            "run blocked"
        );
        blocked.build_id.clone_from(&self.settings.build_id);
        self.attempts.abort_all();
        self.given_up = true;
        self.leave(CommitCommand::Block(Box::new(blocked)));
    }

    fn release(&mut self, reason: String) {
        self.attempts.abort_all();
        self.given_up = true;
        self.leave(CommitCommand::Release { reason });
    }

    fn commit(&mut self, mut commands: Vec<CommitCommand>) {
        let seen = self.seen.load(Ordering::Acquire);
        while !commands.is_empty() {
            let rest = commands.split_off(commands.len().min(limits::COMMIT_COMMANDS_MAX));
            self.commit_one(Unacked { number: self.next_number, seen, commands, ahead: None });
            commands = rest;
        }
    }

    fn commit_one(&mut self, commit: Unacked) {
        self.next_number += 1;
        self.unacked.push_back(commit.clone());
        if self.generation == self.outbox.generation() {
            self.send(commit);
        }
    }

    fn send(&self, commit: Unacked) {
        let Unacked { number, seen, commands, ahead } = commit;
        let commit = WorkerCommit { epoch: self.epoch, number, seen, commands, ahead };
        self.outbox.send(worker_message::Message::Commit(wire::encode_commit(self.run, &commit)));
    }
}

async fn sleep_until(at: Option<TokioInstant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
