//! The worker's side of the stream, as a model.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{
    CommitCommand, Duration, Epoch, Event, EventBody, Failure, OpId, Payload, Rejection, RetryPolicy, RunId,
    SessionId, WorkerCommit,
};
use everstep_engine::{HeldRun, WorkerIn, WorkerOut};

use crate::program::{self, Op, Wants};

/// Microseconds before the lease's end in which nothing is started.
pub(crate) const MARGIN_US: u64 = 500_000;

/// A run that a worker holds.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) epoch: Epoch,
    pub(crate) program: Vec<Op>,
    pub(crate) history: Vec<Event>,
    pub(crate) number: u32,
    pub(crate) unacked: Vec<WorkerCommit>,
    /// Attempts that run or whose end is on its way.
    pub(crate) busy: BTreeSet<OpId>,
    timers_sent: BTreeSet<OpId>,
    ending: bool,
}

/// What a worker wants of the world.
#[derive(Debug)]
pub(crate) enum Act {
    Send(WorkerIn),
    /// Run an attempt: its result comes back after so many microseconds.
    Execute {
        run: RunId,
        epoch: Epoch,
        step: OpId,
        attempt: u32,
        fails: bool,
        after_us: u64,
    },
    /// Look at the run again then.
    Later {
        run: RunId,
        epoch: Epoch,
        at_us: u64,
    },
    /// Connect again, with whatever session is left.
    Reconnect,
}

/// One worker process.
#[derive(Debug, Default)]
pub(crate) struct Worker {
    pub(crate) session: Option<SessionId>,
    pub(crate) runs: BTreeMap<RunId, Held>,
    pub(crate) lease_us: u64,
    /// When the heartbeat was sent that was acknowledged last.
    pub(crate) renewed_us: u64,
    pub(crate) sent: BTreeMap<u64, u64>,
    pub(crate) connected_us: u64,
    /// Greeted on the present stream: until then nothing is said, because what is unanswered goes first.
    pub(crate) welcomed: bool,
    pub(crate) fenced: u64,
}

impl Worker {
    pub(crate) fn may_start(&self, now_us: u64) -> bool {
        self.session.is_some() && now_us + MARGIN_US < self.renewed_us + self.lease_us
    }

    pub(crate) fn held(&self) -> Vec<HeldRun> {
        self.runs
            .iter()
            .map(|(&run_id, h)| HeldRun {
                run_id,
                epoch: h.epoch,
                seen: h.history.last().map_or(0, |e| e.seq),
            })
            .collect()
    }

    pub(crate) fn drop_all(&mut self) {
        self.runs.clear();
        self.session = None;
        self.sent.clear();
    }

    pub(crate) fn hear(&mut self, message: WorkerOut, now_us: u64) -> Vec<Act> {
        match message {
            WorkerOut::Welcome { session_id, lease, resumed } => {
                self.lease_us = lease.as_micros();
                if !resumed {
                    self.drop_all();
                }
                self.session = Some(session_id);
                self.welcomed = true;
                self.renewed_us = self.connected_us;
                let resend = |(&run_id, h): (&RunId, &Held)| {
                    h.unacked
                        .iter()
                        .map(move |c| Act::Send(WorkerIn::Commit { run_id, commit: c.clone() }))
                        .collect()
                };
                let mut acts: Vec<Act> = self.runs.iter().flat_map(|r| -> Vec<Act> { resend(r) }).collect();
                let runs: Vec<RunId> = self.runs.keys().copied().collect();
                acts.extend(runs.into_iter().flat_map(|run| self.advance(run, now_us)));
                acts
            }
            WorkerOut::HeartbeatAck { number } => {
                if let Some(at) = self.sent.remove(&number) {
                    self.renewed_us = self.renewed_us.max(at);
                }
                Vec::new()
            }
            WorkerOut::Activate { run_id, epoch, events, base } => {
                assert!(base.is_none());
                self.activate(run_id, epoch, events.to_vec());
                self.advance(run_id, now_us)
            }
            WorkerOut::Events { run_id, epoch, events, from, committed } => {
                self.events((run_id, epoch), &events, from, committed);
                self.advance(run_id, now_us)
            }
            WorkerOut::Rejected { run_id, epoch, rejection, number } => {
                let Some(held) = self.runs.get_mut(&run_id).filter(|h| h.epoch == epoch) else {
                    return Vec::new();
                };
                if matches!(rejection, Rejection::UnseenEvents { .. }) {
                    held.unacked.retain(|c| c.number != number);
                    held.ending = false;
                    return self.advance(run_id, now_us);
                }
                assert!(!matches!(rejection, Rejection::InvalidCommands { .. }), "{rejection}");
                self.fenced += 1;
                self.runs.remove(&run_id);
                Vec::new()
            }
            WorkerOut::Evict { run_id, epoch, .. } => {
                if self.runs.get(&run_id).is_some_and(|h| h.epoch == epoch) {
                    self.runs.remove(&run_id);
                }
                Vec::new()
            }
            WorkerOut::Drain => Vec::new(),
            WorkerOut::SessionClosed { .. } => {
                self.drop_all();
                vec![Act::Reconnect]
            }
        }
    }

    fn activate(&mut self, run_id: RunId, epoch: Epoch, history: Vec<Event>) {
        let EventBody::RunStarted(start) = &history[0].body else {
            panic!("a history begins with its start")
        };
        let Ok(seed) = start.workflow_type[1..].parse() else { panic!("the workflow type names no program") };
        for (i, event) in history.iter().enumerate() {
            assert_eq!(event.seq, i as u64 + 1, "an activation has a gap");
        }
        if self.runs.get(&run_id).is_some_and(|h| h.epoch >= epoch) {
            return;
        }
        let held = Held {
            epoch,
            program: program::generate(seed),
            history,
            number: 0,
            unacked: Vec::new(),
            busy: BTreeSet::new(),
            timers_sent: BTreeSet::new(),
            ending: false,
        };
        self.runs.insert(run_id, held);
    }

    fn events(&mut self, (run_id, epoch): (RunId, Epoch), events: &[Event], from: u64, committed: u32) {
        let Some(held) = self.runs.get_mut(&run_id).filter(|h| h.epoch == epoch) else { return };
        for event in events.iter().filter(|e| e.seq >= from) {
            let last = held.history.last().map_or(0, |e| e.seq);
            if event.seq <= last {
                continue;
            }
            assert_eq!(event.seq, last + 1, "run {run_id}: the stream has a gap");
            held.history.push(event.clone());
            if let EventBody::StepFailed { step, .. } = &event.body {
                held.busy.remove(step);
            }
            let detached = matches!(event.body, EventBody::WorkerDetached { .. } | EventBody::RunBlocked(_));
            if detached || event.body.is_terminal() {
                self.runs.remove(&run_id);
                return;
            }
        }
        held.unacked.retain(|c| c.number > committed);
    }

    /// Does whatever the run's workflow wants and is not done or on its way.
    pub(crate) fn advance(&mut self, run: RunId, now_us: u64) -> Vec<Act> {
        let may_start = self.may_start(now_us);
        let Some(held) = self.runs.get_mut(&run) else { return Vec::new() };
        if held.ending {
            return Vec::new();
        }
        let Wants { attempts, timers, done } = program::wants(&held.program, &held.history);
        let (epoch, mut acts, mut commands) = (held.epoch, Vec::new(), Vec::new());
        let mut waits_long = true;
        for (step, attempt, fails, slow_us, due) in attempts {
            if held.busy.contains(&step) {
                waits_long = false;
                continue;
            }
            let due_us = crate::world::from_db(due);
            if due_us > now_us {
                waits_long &= due_us > now_us + 2_000_000;
                acts.push(Act::Later { run, epoch, at_us: due_us });
            } else if may_start {
                waits_long = false;
                held.busy.insert(step);
                if slow_us > 20_000 {
                    commands.push(CommitCommand::StartStep { step, name: "s".into(), attempt });
                }
                acts.push(Act::Execute { run, epoch, step, attempt, fails, after_us: slow_us });
            } else {
                waits_long = false;
                acts.push(Act::Later { run, epoch, at_us: now_us + 300_000 });
            }
        }
        for (timer, us) in timers {
            if held.timers_sent.insert(timer) {
                commands.push(CommitCommand::StartTimer { timer, delay: Duration::from_micros(us) });
            }
        }
        if done {
            held.ending = true;
            commands.push(CommitCommand::CompleteRun { result: Payload::json("1"), unconsumed: Vec::new() });
        } else if waits_long && commands.is_empty() && held.unacked.is_empty() {
            held.ending = true;
            commands.push(CommitCommand::Park);
        }
        acts.extend(self.commit(run, commands));
        acts
    }

    /// An attempt has ended.
    pub(crate) fn executed(
        &mut self,
        (run, epoch): (RunId, Epoch),
        step: OpId,
        attempt: u32,
        fails: bool,
    ) -> Vec<Act> {
        if self.runs.get(&run).is_none_or(|h| h.epoch != epoch || h.ending) {
            return Vec::new();
        }
        let elapsed = Duration::from_micros(1);
        let name = "s".to_owned();
        let command = if fails {
            let failure = Failure::new("Sim", "as planned");
            CommitCommand::FailStep { step, name, attempt, elapsed, failure, policy: RetryPolicy::default() }
        } else {
            let result = Payload::json(format!("\"{run}/{step}\""));
            CommitCommand::CompleteStep { step, name, attempt, elapsed, result }
        };
        self.commit(run, vec![command])
    }

    fn commit(&mut self, run_id: RunId, commands: Vec<CommitCommand>) -> Vec<Act> {
        let Some(held) = self.runs.get_mut(&run_id) else { return Vec::new() };
        if commands.is_empty() {
            return Vec::new();
        }
        held.number += 1;
        let seen = held.history.last().map_or(0, |e| e.seq);
        let commit = WorkerCommit { epoch: held.epoch, number: held.number, seen, commands };
        held.unacked.push(commit.clone());
        vec![Act::Send(WorkerIn::Commit { run_id, commit })]
    }
}
