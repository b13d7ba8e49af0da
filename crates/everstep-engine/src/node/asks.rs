//! Questions to the code of runs. Nothing is written for them, and nothing is lost with them: whoever asks waits
//! for the answer, and asks again.
//!
//! A question is put to the worker that has the run in memory, or to any other that has the code for it, which
//! gets the whole history. It names the last event that was recorded when the question came, so that no answer is
//! older than what its asker could know. A question that no worker here can answer is left for the other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use everstep_core::{AskId, Duration, Event, Payload, Timestamp};
use everstep_store::{self as store, AskAnswer, AskKind, AskOutcome, AskRow, AskWant};

use super::slot::Job;
use super::{Node, Output};
use crate::ask::unfit;
use crate::{Answer, AskTarget, Error, Query, Said, WorkerOut};

/// Questions that a node holds at one time.
const ASKS_MAX: usize = 1_000;
/// Histories that one worker is given at one time to answer from.
const REPLAYS_MAX: usize = 8;
/// Workers that may be lost over one question: it may be what they die of.
const LOSSES_MAX: u32 = 3;

/// The questions that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Asks {
    open: BTreeMap<AskId, Asked>,
    /// Histories that each worker is answering from.
    replays: BTreeMap<u64, usize>,
}

/// One question.
#[derive(Debug)]
struct Asked {
    target: AskTarget,
    query: Arc<Query>,
    /// When nobody waits for it any more.
    until: Timestamp,
    asker: Asker,
    stage: Stage,
    /// Builds whose code does not fit the run's history, and how.
    unfit: BTreeSet<String>,
    problem: String,
    /// Workers that were lost while they answered.
    losses: u32,
    /// The run's owner could not answer: somebody else is to.
    not_owner: bool,
    /// It was left for the other nodes.
    relayed: bool,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A client of this node.
    Client,
    /// Another node, which finds the answer where it left the question.
    Node,
    /// This node, for an update that a client has requested.
    Update(u64),
}

/// Where a question is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for a worker.
    Waiting,
    /// With the run's owner.
    Owner(u64),
    /// With a worker that gets the history, or is about to.
    Replay(u64),
}

impl Stage {
    fn link(self) -> Option<u64> {
        match self {
            Self::Waiting => None,
            Self::Owner(link) | Self::Replay(link) => Some(link),
        }
    }
}

impl Asks {
    fn set(&mut self, ask: AskId, stage: Stage) {
        let Some(asked) = self.open.get_mut(&ask) else { return };
        let old = std::mem::replace(&mut asked.stage, stage);
        self.count(old, stage);
    }

    fn remove(&mut self, ask: AskId) -> Option<Asked> {
        let asked = self.open.remove(&ask)?;
        self.count(asked.stage, Stage::Waiting);
        Some(asked)
    }

    fn count(&mut self, from: Stage, to: Stage) {
        if let Stage::Replay(link) = from
            && let Some(replays) = self.replays.get_mut(&link)
        {
            *replays -= 1;
            if *replays == 0 {
                self.replays.remove(&link);
            }
        }
        if let Stage::Replay(link) = to {
            *self.replays.entry(link).or_default() += 1;
        }
    }

    fn waiting(&self) -> Vec<AskId> {
        let waits = |(&ask, asked): (&AskId, &Asked)| (asked.stage == Stage::Waiting).then_some(ask);
        self.open.iter().filter_map(waits).collect()
    }

    fn replays(&self, link: u64) -> usize {
        self.replays.get(&link).copied().unwrap_or(0)
    }
}

impl Node {
    /// A client asks.
    pub(super) fn ask(&mut self, ask: AskId, target: AskTarget, query: Query, wait: Duration) {
        let refused = if self.draining {
            Some(Error::Stopping)
        } else if self.asks.open.len() >= ASKS_MAX {
            Some(Error::Overloaded)
        } else {
            None
        };
        match refused {
            Some(error) => self.out.push(Output::Answered { ask, result: Err(error) }),
            None => self.put(ask, (target, query), wait, Asker::Client),
        }
    }

    /// Other nodes ask.
    pub(super) fn asks_found(&mut self, rows: Vec<AskRow>) {
        for row in rows {
            let AskRow { ask, run_id, queue, workflow_type, build_id, at_least, kind, name, input, wait } =
                row;
            // What finds no room is claimed again, by whoever has some.
            if self.draining || self.asks.open.contains_key(&ask) || self.asks.open.len() >= ASKS_MAX {
                continue;
            }
            let target = AskTarget { run_id, queue, workflow_type, build_id, tail: at_least };
            self.put(ask, (target, Query { kind, name, input }), wait, Asker::Node);
        }
    }

    /// No room for one more.
    pub(super) fn asks_are_full(&self) -> bool {
        self.asks.open.len() >= ASKS_MAX
    }

    pub(super) fn put(
        &mut self,
        ask: AskId,
        (target, query): (AskTarget, Query),
        wait: Duration,
        asker: Asker,
    ) {
        let asked = Asked {
            target,
            query: Arc::new(query),
            until: self.now.after(wait),
            asker,
            stage: Stage::Waiting,
            unfit: BTreeSet::new(),
            problem: String::new(),
            losses: 0,
            not_owner: false,
            relayed: false,
        };
        self.asks.open.insert(ask, asked);
        self.route(ask);
    }

    /// Finds somebody who can answer.
    fn route(&mut self, ask: AskId) {
        let Some(asked) = self.asks.open.get(&ask) else { return };
        if !asked.not_owner && self.ask_owner(ask) {
            return;
        }
        let Some(asked) = self.asks.open.get(&ask) else { return };
        if let Some(link) = self.link_to_replay(asked) {
            let run = asked.target.run_id;
            self.asks.set(ask, Stage::Replay(link));
            return self.out.push(Output::LoadForAsk { ask, run });
        }
        // An update is not refused on the word of other code than the run's: it waits for a worker that has that.
        let may_wait = asked.query.kind == AskKind::Update;
        if !asked.unfit.is_empty() && !may_wait && !self.is_busy(asked) {
            let kind = "Nondeterminism".to_owned();
            let message = asked.problem.clone();
            return self.finish_ask(ask, Err(Error::QueryFailed { kind, message }));
        }
        self.asks.set(ask, Stage::Waiting);
        self.relay(ask);
    }

    /// Asks the worker that has the run in memory, if it is connected here.
    fn ask_owner(&mut self, ask: AskId) -> bool {
        let Some(asked) = self.asks.open.get(&ask) else { return false };
        let (run_id, at_least) = (asked.target.run_id, asked.target.tail);
        let Some(slot) = self.slots.get(&run_id) else { return false };
        let Some((link, epoch)) = slot.told else { return false };
        if !self.sessions.get(&link).is_some_and(|s| s.asks) {
            return false;
        }
        let behind = slot.run.as_ref().is_none_or(|run| run.seq() < at_least);
        let (query, wait) = (Arc::clone(&asked.query), asked.until.since(self.now));
        let events = Arc::default();
        let message = WorkerOut::Ask { ask, run_id, epoch, at_least, events, query, wait };
        self.out.push(Output::ToWorker { link, message });
        self.asks.set(ask, Stage::Owner(link));
        if behind {
            // Another node has appended: the owner has to hear of it before it can answer.
            self.add_job(run_id, Job::Look);
        }
        true
    }

    /// The worker to be given the history: one with the build that had the run last, if there is one, and the one
    /// with the least to do among them.
    fn link_to_replay(&self, asked: &Asked) -> Option<u64> {
        let AskTarget { queue, workflow_type, build_id, .. } = &asked.target;
        self.sessions
            .iter()
            .filter(|(link, _)| self.asks.replays(**link) < REPLAYS_MAX)
            .filter(|(_, s)| s.speaks_for(queue, workflow_type) && !asked.unfit.contains(&s.worker.build_id))
            .min_by_key(|(link, s)| (s.worker.build_id != *build_id, self.asks.replays(**link), **link))
            .map(|(&link, _)| link)
    }

    /// Whether there is a worker that could answer, if it had not as much to do.
    fn is_busy(&self, asked: &Asked) -> bool {
        let AskTarget { queue, workflow_type, .. } = &asked.target;
        let fits = |build: &String| !asked.unfit.contains(build);
        self.sessions.values().any(|s| s.speaks_for(queue, workflow_type) && fits(&s.worker.build_id))
    }

    /// Leaves a question for the other nodes, once.
    fn relay(&mut self, ask: AskId) {
        let relays = self.config.relays;
        let Some(asked) = self.asks.open.get(&ask) else { return };
        if !relays || asked.relayed || self.is_busy(asked) {
            return;
        }
        if asked.asker == Asker::Node {
            // Its worker has gone: the claim on the row runs out, and another node takes it.
            self.asks.remove(ask);
            return;
        }
        let AskTarget { run_id, queue, workflow_type, build_id, tail } = asked.target.clone();
        let Query { kind, name, input } = (*asked.query).clone();
        let wait = asked.until.since(self.now);
        let at_least = tail;
        let row = AskRow { ask, run_id, queue, workflow_type, build_id, at_least, kind, name, input, wait };
        self.out.push(Output::RelayAsk(Box::new(row)));
        if let Some(asked) = self.asks.open.get_mut(&ask) {
            asked.relayed = true;
        }
    }

    /// The history of a run that is asked.
    pub(super) fn loaded_for_ask(&mut self, ask: AskId, events: Result<Vec<Event>, store::Error>) {
        let Some(asked) = self.asks.open.get(&ask) else { return };
        let Stage::Replay(link) = asked.stage else { return };
        let events = match events {
            Ok(events) => events,
            Err(error) => return self.finish_ask(ask, Err(error.into())),
        };
        let (run_id, at_least) = (asked.target.run_id, asked.target.tail);
        if events.last().is_none_or(|last| last.seq < at_least) {
            return self.finish_ask(ask, Err(Error::RunNotFound(run_id.to_string())));
        }
        let (query, wait) = (Arc::clone(&asked.query), asked.until.since(self.now));
        let events = Arc::new(events);
        let message = WorkerOut::Ask { ask, run_id, epoch: 0, at_least, events, query, wait };
        self.out.push(Output::ToWorker { link, message });
    }

    /// What a worker says to a question that it was asked.
    pub(super) fn said(&mut self, link: u64, ask: AskId, seq: u64, said: Said) {
        if self.check_said(link, ask, &said) {
            return;
        }
        let Some(asked) = self.asks.open.get_mut(&ask).filter(|a| a.stage.link() == Some(link)) else {
            return;
        };
        let known = seq >= asked.target.tail;
        match said {
            Said::Value(value) if known => self.finish_ask(ask, Ok(Answer { value, seq })),
            Said::Passed if known && asked.query.kind == AskKind::Update => {
                self.finish_ask(ask, Ok(Answer { value: Payload::default(), seq }));
            }
            Said::Refused { kind, message } => {
                self.finish_ask(ask, Err(Error::QueryFailed { kind, message }))
            }
            Said::Mismatch(blocked) => {
                asked.problem = unfit(&blocked);
                let build = self.sessions.get(&link).map(|s| s.worker.build_id.clone());
                asked.unfit.extend(build);
                self.route(ask);
            }
            Said::Value(_) | Said::Gone(_) | Said::Passed => self.lost(ask),
        }
        self.ask_again();
    }

    /// A worker could not answer.
    fn lost(&mut self, ask: AskId) {
        let Some(asked) = self.asks.open.get_mut(&ask) else { return };
        // An owner that lets go of the run is no bad sign, and is not asked again.
        if matches!(asked.stage, Stage::Owner(_)) && !asked.not_owner {
            asked.not_owner = true;
        } else {
            asked.losses += 1;
        }
        if asked.losses >= LOSSES_MAX {
            let message = format!("{LOSSES_MAX} workers were lost while they answered");
            let error = Error::QueryFailed { kind: "WorkerLost".to_owned(), message };
            return self.finish_ask(ask, Err(error));
        }
        self.asks.set(ask, Stage::Waiting);
        self.route(ask);
    }

    /// A stream is gone, and with it the answers that it would have brought.
    pub(super) fn asks_lost(&mut self, link: u64) {
        let with_it = |(&ask, asked): (&AskId, &Asked)| (asked.stage.link() == Some(link)).then_some(ask);
        let lost: Vec<AskId> = self.asks.open.iter().filter_map(with_it).collect();
        for ask in lost {
            if self.draining {
                self.finish_ask(ask, Err(Error::Stopping));
            } else {
                self.lost(ask);
            }
        }
    }

    /// What waits for a worker waits in vain: its askers find another node.
    pub(super) fn stop_waiting_asks(&mut self) {
        for ask in self.asks.waiting() {
            self.finish_ask(ask, Err(Error::Stopping));
        }
    }

    /// There may be a worker for what waits.
    pub(super) fn ask_again(&mut self) {
        for ask in self.asks.waiting() {
            let found = self.asks.open.get(&ask).is_some_and(|asked| self.link_to_replay(asked).is_some());
            if found {
                self.route(ask);
            }
        }
    }

    /// What another node's worker said.
    pub(super) fn ask_relayed(&mut self, ask: AskId, answer: AskAnswer) {
        let result = match answer.outcome {
            AskOutcome::Value(value) => Ok(Answer { value, seq: answer.seq }),
            AskOutcome::Refused { kind, message } => Err(Error::QueryFailed { kind, message }),
        };
        self.finish_ask(ask, result);
    }

    /// Nobody waits any longer.
    pub(super) fn ask_over(&mut self, ask: AskId) {
        let Some(asked) = self.asks.open.get(&ask) else { return };
        let error = match asked.stage {
            Stage::Owner(_) | Stage::Replay(_) => Error::NoAnswer,
            Stage::Waiting if self.is_busy(asked) => Error::Overloaded,
            Stage::Waiting => Error::NoWorker {
                queue: asked.target.queue.clone(),
                workflow_type: asked.target.workflow_type.clone(),
            },
        };
        self.finish_ask(ask, Err(error));
        self.ask_again();
    }

    fn finish_ask(&mut self, ask: AskId, result: Result<Answer, Error>) {
        let Some(asked) = self.asks.remove(ask) else { return };
        if asked.relayed {
            self.out.push(Output::RelayOver(ask));
        }
        match asked.asker {
            Asker::Client => return self.out.push(Output::Answered { ask, result }),
            Asker::Update(request) => return self.update_answered(request, result),
            Asker::Node => {}
        }
        let outcome = match result {
            Ok(Answer { value, seq }) => AskAnswer { seq, outcome: AskOutcome::Value(value) },
            Err(Error::QueryFailed { kind, message }) => {
                AskAnswer { seq: asked.target.tail, outcome: AskOutcome::Refused { kind, message } }
            }
            // What came of it here says nothing about what comes of it elsewhere: the claim on the row runs out.
            Err(_) => return,
        };
        self.out.push(Output::AnswerAsk { ask, run: asked.target.run_id, answer: outcome });
    }

    /// What other nodes may be asked that workers of this one can answer.
    pub fn ask_wants(&self) -> Vec<AskWant> {
        if self.draining || !self.config.relays {
            return Vec::new();
        }
        let room = |link: &u64| self.asks.replays(*link) < REPLAYS_MAX;
        let wants = self.sessions.iter().filter(|(link, _)| room(link)).filter_map(|(_, s)| s.ask_want());
        wants.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Other nodes have left questions.
    pub(super) fn find_asks(&mut self) {
        let wants = self.ask_wants();
        if !wants.is_empty() {
            self.out.push(Output::FindAsks(wants));
        }
    }
}

#[cfg(test)]
mod tests;
