//! Starts: the requests whose run does not exist yet.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_core::{
    Actor, ChildStart, Command, CommandBody, CurrentRun, Event, KnownRequest, Run, RunId, StartDecision,
    StartRun, Write, WriteBasis, decide, decide_start, start_body_hash,
};
use everstep_fault::{Bug, planted};
use everstep_store::{self as store, Append, RunAppend, StartClaim, StartRecord, Verdict};

use super::slot::{Job, backoff};
use super::{Node, Output};
use crate::{Error, Started};

/// Races that a start may lose before its caller is told so.
const RACES_MAX: u32 = 5;
/// Tries of an append, after which the caller is told that the store does not answer.
const TRIES_MAX: u32 = 8;

/// Who hears what comes of a start.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// A client, by its request.
    Client(u64),
    /// Another run, whose child it is to be.
    Parent(u64),
}

/// A start in progress.
#[derive(Debug)]
pub(super) struct StartJob {
    asked: Asked,
    pub(super) start: Box<StartRun>,
    run_id: RunId,
    seed: u64,
    races: u32,
    tries: u32,
    /// Nobody knows what became of one of its tries.
    doubtful: bool,
    /// The stream of the worker that the run is started for.
    claimed: Option<u64>,
    /// The run was read from the log before the answer to its append came: it has gone on without it.
    overtaken: bool,
    /// The run as it will be, and the append that makes it so.
    prepared: Option<(Run, Append)>,
    /// Waiting for the history of the run to terminate: the first event and who holds the workflow id.
    terminating: Option<(Box<Event>, RunId)>,
    /// Waiting for the history of the closed run that holds the workflow id.
    pub(super) looking: Option<CurrentRun>,
    /// The closed run that was looked at.
    pub(super) looked_at: Option<RunId>,
    replied: bool,
}

impl StartJob {
    /// Whether the run is the one that is being started.
    pub(super) fn is_for(&self, run: RunId) -> bool {
        self.run_id == run
    }
}

impl Node {
    /// Begins a start, hoping that nobody holds the workflow id: the claim in the append says so if not.
    pub(super) fn start(&mut self, request: u64, start: Box<StartRun>) {
        if self.draining {
            self.out.push(Output::Started { request, result: Err(Error::Stopping) });
            return;
        }
        if let Some(started) = self.started_anywhere(&start.request_id) {
            self.out.push(Output::Started { request, result: Ok(started) });
            return;
        }
        let run_id = self.ids.run_id(self.now);
        let seed = self.ids.number();
        self.begin_start(Asked::Client(request), start, (run_id, seed));
    }

    /// Begins the start of a child, whose run id and seed follow from its parent's history.
    pub(super) fn start_child(&mut self, flight: u64, child: ChildStart) {
        let ChildStart { start, run_id, seed, .. } = child;
        let run_id = if planted(Bug::ChildIdRandom) { self.ids.run_id(self.now) } else { run_id };
        self.begin_start(Asked::Parent(flight), Box::new(start), (run_id, seed));
    }

    fn begin_start(&mut self, asked: Asked, start: Box<StartRun>, (run_id, seed): (RunId, u64)) {
        let ticket = self.ticket();
        let job = StartJob {
            asked,
            start,
            run_id,
            seed,
            races: 0,
            tries: 0,
            doubtful: false,
            claimed: None,
            overtaken: false,
            prepared: None,
            terminating: None,
            looking: None,
            looked_at: None,
            replied: false,
        };
        self.starts.insert(ticket, job);
        self.decide_start(ticket, None, None);
    }

    pub(super) fn decide_start(
        &mut self,
        ticket: u64,
        current: Option<CurrentRun>,
        known: Option<KnownRequest>,
    ) {
        let Some(job) = self.starts.get_mut(&ticket) else { return };
        if known.is_some_and(|k| k.run_id == job.run_id) {
            // Our own append was committed after all; its answer was lost.
            let run_id = job.run_id;
            self.finish_start(ticket, Ok(Started { run_id, started: true }));
            return self.add_job(run_id, Job::Look);
        }
        if known.is_none() && self.looks_at_holder(ticket, current) {
            return;
        }
        let Some(job) = self.starts.get_mut(&ticket) else { return };
        match decide_start(&job.start, (job.run_id, job.seed), current, known, self.now) {
            Err(rejection) => self.finish_start(ticket, Err(rejection.into())),
            Ok(StartDecision::Existing(run_id)) => {
                self.finish_start(ticket, Ok(Started { run_id, started: false }))
            }
            Ok(StartDecision::Start { event, expected, terminate: None }) => {
                self.append_start(ticket, *event, expected, None);
            }
            Ok(StartDecision::Start { event, terminate: Some(holder), .. }) => {
                job.terminating = Some((event, holder));
                self.out.push(Output::LoadForStart { ticket, run: holder });
            }
        }
    }

    fn append_start(
        &mut self,
        ticket: u64,
        event: Event,
        expected: Option<RunId>,
        with: Option<Box<RunAppend>>,
    ) {
        let Some(job) = self.starts.get(&ticket) else { return };
        let claim = StartClaim {
            namespace: job.start.namespace.clone(),
            workflow_id: job.start.workflow_id.clone(),
            expected,
            request_id: job.start.request_id.clone(),
            body_hash: start_body_hash(&job.start),
        };
        let run_id = job.run_id;
        let mut run = match Run::begin(run_id, &event) {
            Ok(run) => run,
            Err(e) => return self.finish_start(ticket, Err(store::Error::Corrupt(e.to_string()).into())),
        };
        let mut events = vec![event];
        self.receive_first(ticket, &mut run, &mut events);
        let claimed = self.attach_at_start(&mut run, &mut events);
        let writes = WriteBasis::NEW.writes(&run, &events);
        let append =
            Append { run: RunAppend { run_id, start: Some(claim), events: Arc::new(events), writes }, with };
        self.submit(ticket, &append, StdDuration::ZERO);
        if let Some(job) = self.starts.get_mut(&ticket) {
            job.prepared = Some((run, append));
            job.claimed = claimed;
        }
        if planted(Bug::ReplyBeforeCommit) {
            self.start_replied(ticket, Ok(Started { run_id, started: true }));
        }
    }

    /// Claims the run for a worker that is connected here, in the append that starts it.
    pub(super) fn attach_at_start(&mut self, run: &mut Run, events: &mut Vec<Event>) -> Option<u64> {
        let link = self.link_for(&run.task())?;
        let attach = self.attach_of(link, run)?;
        let session = self.sessions.get_mut(&link)?;
        let actor = Actor::Worker(session.worker.identity.clone());
        let command = Command { id: self.ids.command_id(), actor, body: CommandBody::Attach(attach) };
        let decision = decide(run, &command, self.now).ok()?;
        for event in decision.events {
            if run.apply(&event).is_ok() {
                events.push(event);
            }
        }
        session.runs.insert(run.id());
        Some(link)
    }

    /// The log holds a run whose start may still wait for its answer.
    pub(super) fn overtake_start(&mut self, run: RunId) {
        for job in self.starts.values_mut().filter(|job| job.is_for(run)) {
            job.overtaken = true;
        }
        if let Some(overtaken) = self.successors.get_mut(&run) {
            *overtaken = true;
        }
    }

    /// The verdict on a start's append.
    pub(super) fn start_appended(&mut self, ticket: u64, verdict: Verdict) {
        let Some(job) = self.starts.get_mut(&ticket) else { return };
        match verdict {
            Verdict::Committed => {
                let (asked, run_id, replied, claimed) = (job.asked, job.run_id, job.replied, job.claimed);
                let overtaken = job.overtaken;
                let prepared = job.prepared.take();
                let terminated = job.terminating.take().map(|(_, holder)| holder);
                if let Some(job) = self.starts.remove(&ticket) {
                    self.remember_start(&job.start.request_id, run_id);
                }
                if !replied {
                    self.start_answer(asked, Ok(Started { run_id, started: true }));
                }
                if let Some((run, append)) = prepared {
                    self.adopt_started(run, append, claimed, overtaken);
                }
                if let Some(holder) = terminated {
                    self.add_job(holder, Job::Look);
                }
            }
            Verdict::Conflict => {
                job.races += 1;
                let races = job.races;
                self.release_claim(ticket);
                if races > RACES_MAX {
                    return self.finish_start(ticket, Err(Error::Contention { attempts: races }));
                }
                self.find_start(ticket);
            }
            Verdict::Failed(error) => self.start_failed(ticket, error),
        }
    }

    fn find_start(&mut self, ticket: u64) {
        let Some(job) = self.starts.get(&ticket) else { return };
        self.out.push(Output::FindStart {
            ticket,
            namespace: job.start.namespace.clone(),
            workflow_id: job.start.workflow_id.clone(),
            request_id: job.start.request_id.clone(),
        });
    }

    fn start_failed(&mut self, ticket: u64, error: store::Error) {
        let unknown = matches!(error, store::Error::OutcomeUnknown(_));
        if unknown {
            self.status.unknown_settled += 1;
        }
        let Some(job) = self.starts.get_mut(&ticket) else { return };
        job.tries += 1;
        job.doubtful |= unknown;
        let (tries, doubtful, run_id) = (job.tries, job.doubtful, job.run_id);
        if !unknown && (!error.is_retryable() || tries >= TRIES_MAX) {
            self.release_claim(ticket);
            if !doubtful {
                return self.finish_start(ticket, Err(error.into()));
            }
            // This try wrote nothing, and an earlier one may have started the run.
            self.finish_start(ticket, Err(store::Error::OutcomeUnknown(error.to_string()).into()));
            return self.add_job(run_id, Job::Look);
        }
        let prepared = job.prepared.clone();
        if tries >= TRIES_MAX {
            self.start_replied(ticket, Err(store::Error::OutcomeUnknown(error.to_string()).into()));
        }
        if let Some((_, append)) = prepared {
            self.submit(ticket, &append, backoff(tries));
        }
    }

    /// Gives the room that was kept for the run back to the worker.
    fn release_claim(&mut self, ticket: u64) {
        let Some(job) = self.starts.get_mut(&ticket) else { return };
        job.prepared = None;
        let run_id = job.run_id;
        for session in self.sessions.values_mut() {
            session.runs.remove(&run_id);
        }
    }

    /// Who holds the workflow id.
    pub(super) fn start_found(&mut self, ticket: u64, record: Result<StartRecord, store::Error>) {
        match record {
            Err(error) => {
                // An append whose outcome is unknown may have started the run, for a worker that is connected here.
                let run = self.starts.get(&ticket).map(|job| job.run_id);
                self.finish_start(ticket, Err(error.into()));
                if let Some(run) = run {
                    self.add_job(run, Job::Look);
                }
            }
            Ok(record) => {
                let current = record.current.map(|(run_id, status)| CurrentRun { run_id, status });
                let known = record.request.map(|(run_id, body_hash)| KnownRequest { run_id, body_hash });
                self.decide_start(ticket, current, known);
            }
        }
    }

    /// The history of the run to terminate.
    pub(super) fn loaded_for_start(&mut self, ticket: u64, events: Result<Vec<Event>, store::Error>) {
        let Some(job) = self.starts.get_mut(&ticket) else { return };
        if let Some(holder) = job.looking.take() {
            return self.looked_at_holder(ticket, holder, events);
        }
        let Some((event, holder)) = job.terminating.clone() else { return };
        let events = match events {
            Ok(events) => events,
            Err(error) => return self.finish_start(ticket, Err(error.into())),
        };
        let mut old = match Run::fold(holder, &events) {
            Ok(Some(run)) => run,
            Ok(None) => return self.find_start(ticket),
            Err(e) => return self.finish_start(ticket, Err(store::Error::Corrupt(e.to_string()).into())),
        };
        let basis = WriteBasis::of(&old);
        let reason = format!("replaced by run {}", job.run_id);
        let command = Command {
            id: event.command_id,
            actor: Actor::Client(job.start.identity.clone()),
            body: CommandBody::Terminate { reason },
        };
        let with = match decide(&old, &command, self.now) {
            // It has ended by itself meanwhile: ask again who holds the workflow id.
            Err(_) => return self.find_start(ticket),
            Ok(decision) => {
                for e in &decision.events {
                    if let Err(e) = old.apply(e) {
                        return self.finish_start(ticket, Err(store::Error::Corrupt(e.to_string()).into()));
                    }
                }
                let mut writes = basis.writes(&old, &decision.events);
                writes.push(Write::WakesDeleted { up_to: old.seq() });
                RunAppend { run_id: holder, start: None, events: Arc::new(decision.events), writes }
            }
        };
        self.append_start(ticket, *event, Some(holder), Some(Box::new(with)));
    }

    /// Answers the caller, once; the start itself goes on.
    fn start_replied(&mut self, ticket: u64, result: Result<Started, Error>) {
        if let Some(job) = self.starts.get_mut(&ticket)
            && !job.replied
        {
            job.replied = true;
            let asked = job.asked;
            self.start_answer(asked, result);
        }
    }

    pub(super) fn finish_start(&mut self, ticket: u64, result: Result<Started, Error>) {
        if let Some(job) = self.starts.remove(&ticket)
            && !job.replied
        {
            self.start_answer(job.asked, result);
        }
    }

    fn start_answer(&mut self, asked: Asked, result: Result<Started, Error>) {
        match asked {
            Asked::Client(request) => self.out.push(Output::Started { request, result }),
            Asked::Parent(flight) => self.child_heard(flight, result),
        }
    }
}
