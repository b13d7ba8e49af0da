//! What runs have to hear of each other: from an event of one run to a start of, or a request to, another.
//!
//! The append of such an event writes a row to the outbox. The node that made the append tells the others at once;
//! when it dies over that, the sweep of any node finds the row and does it again. Whoever is told twice has heard it
//! once: a child has its run id before it begins, a signal its id, and an end is the end. A row goes when all of it
//! is done; what the store could not do stays in it.
//!
//! Rows of one run are taken in the order of its events, but for children that begin side by side: so a child begins
//! before its parent's end is told to it, and two signals to one run arrive in the order in which they were sent.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use everstep_core::{
    Actor, ChildClosed, ChildOutcome, ChildStart, Command, CommandBody, CommandId, Duration, Event,
    ExternalTarget, Failure, Outbound, Rejection, Run, RunId, Seq, Timestamp, ToRun, Write,
};
use everstep_fault::{Bug, planted};
use everstep_store::{self as store, RunAppend};

use super::slot::Job;
use super::{Node, Output};
use crate::{Error, Started};

/// Children of one run that begin at one time, and runs that are told of one event at one time.
const FLIGHTS_MAX: usize = 64;
/// Rows of the outbox that one look of the sweep takes at most. As many at once may not be all that there are.
pub const OUTBOX_CLAIM_MAX: usize = 500;
/// Rows that a node keeps to itself while it is at them.
const TELLING_MAX: usize = 1_000;
/// A run of which nothing was told for so long is left to whoever else tries.
const STALLED: Duration = Duration::from_secs(10);
/// How long, and how many, rows are known to have been told.
const TOLD_FOR: Duration = Duration::from_secs(30);
const TOLD_MAX: usize = 10_000;
/// How long a run whose news could not be told has all that follows left to the sweep, which tells it in order. No row
/// waits longer for the next try.
const LEFT_TO_THE_SWEEP: Duration = Duration::from_secs(60);

/// What this node tells others of.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    sources: BTreeMap<RunId, Source>,
    flights: BTreeMap<u64, Flight>,
    last: u64,
    /// Runs that may have something to tell now.
    ready: BTreeSet<RunId>,
    /// Runs whose history is being read for what they have to tell; true when that is all that the store has of it.
    loading: BTreeMap<RunId, bool>,
    /// Requests that go on to the run that follows the one they were for.
    passed_on: Vec<(u64, RunId, Command)>,
    told: Told,
}

/// Rows that others have heard of a moment ago. They are being deleted, and the sweep may come first.
#[derive(Debug, Default)]
struct Told {
    rows: BTreeSet<(RunId, Seq)>,
    by_time: VecDeque<(Timestamp, (RunId, Seq))>,
}

/// A run that others have to hear of.
#[derive(Debug, Default)]
struct Source {
    namespace: String,
    waiting: BTreeMap<Seq, Vec<Outbound>>,
    /// Rows under way.
    rows: BTreeMap<Seq, Row>,
    /// Until then what is new is not told from here: something before it could not be, or is still in the store.
    left_until: Option<Timestamp>,
    /// When something of it was last told, or came to be told.
    moved: Timestamp,
}

/// A row of the outbox under way.
#[derive(Debug)]
struct Row {
    /// It is a child that begins.
    start: bool,
    untold: VecDeque<Outbound>,
    flying: usize,
    /// Some of it was not done: it stays in the outbox.
    stays: bool,
    /// The append that was made of it has deleted it.
    deleted: bool,
}

/// One thing that is told to one run.
#[derive(Debug)]
struct Flight {
    source: RunId,
    seq: Seq,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Start(Box<ChildStart>),
    ToRun(Box<ToRun>),
    /// What became of one of these, for the run that asked for it.
    Reply,
}

/// What a run did with what it was told.
#[derive(Debug)]
pub(super) enum Heard {
    /// It took it, or had before; in an append that has events of it, or not.
    Taken {
        /// It has.
        wrote: bool,
    },
    /// It refused it.
    Refused(Rejection),
    /// There is no such run in the namespace.
    Nobody,
    /// Nobody knows: the store does not answer.
    Unknown,
}

impl Deliveries {
    /// True when nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.loading.is_empty() && self.sources.values().all(|s| s.waiting.is_empty() && s.rows.is_empty())
    }

    fn has(&self, run: RunId, seq: Seq) -> bool {
        let has = |source: &Source| source.rows.contains_key(&seq) || source.waiting.contains_key(&seq);
        self.sources.get(&run).is_some_and(has)
    }

    fn flight(&mut self, source: RunId, seq: Seq, what: What) -> u64 {
        self.last += 1;
        self.flights.insert(self.last, Flight { source, seq, what });
        self.last
    }

    /// The namespace of the run that a flight comes from.
    pub(super) fn namespace(&self, flight: u64) -> Option<&str> {
        let source = self.flights.get(&flight)?.source;
        self.sources.get(&source).map(|source| source.namespace.as_str())
    }
}

impl Told {
    fn note(&mut self, row: (RunId, Seq), now: Timestamp) {
        let old = |at: &Timestamp| now.since(*at) > TOLD_FOR;
        while self.by_time.front().is_some_and(|(at, _)| old(at) || self.by_time.len() >= TOLD_MAX) {
            if let Some((_, row)) = self.by_time.pop_front() {
                self.rows.remove(&row);
            }
        }
        if self.rows.insert(row) {
            self.by_time.push_back((now, row));
        }
    }
}

impl Source {
    /// The next thing to tell, when it need not wait for another.
    fn take(&mut self) -> Option<(Seq, Outbound)> {
        self.take_row();
        let untold = |(_, row): &(&Seq, &mut Row)| row.flying < FLIGHTS_MAX && !row.untold.is_empty();
        let (seq, row) = self.rows.iter_mut().find(untold)?;
        row.flying += 1;
        Some((*seq, row.untold.pop_front()?))
    }

    fn take_row(&mut self) {
        let start = |outbounds: &[Outbound]| matches!(outbounds, [Outbound::Start(_)]);
        let Some((_, next)) = self.waiting.first_key_value() else { return };
        let free = if start(next) {
            self.rows.len() < FLIGHTS_MAX && self.rows.values().all(|row| row.start)
        } else {
            self.rows.is_empty() || planted(Bug::TellSideBySide)
        };
        if planted(Bug::ForgetItsTurn) && !free {
            return drop(self.waiting.pop_first());
        }
        if free && let Some((seq, outbounds)) = self.waiting.pop_first() {
            let start = start(&outbounds);
            let row = Row { start, untold: outbounds.into(), flying: 0, stays: false, deleted: false };
            self.rows.insert(seq, row);
        }
    }

    fn is_telling(&self) -> bool {
        !(self.waiting.is_empty() && self.rows.is_empty())
    }

    /// Nothing of it has to be kept.
    fn is_quiet(&self, now: Timestamp) -> bool {
        self.waiting.is_empty() && self.rows.is_empty() && self.left_until.is_none_or(|until| until <= now)
    }
}

impl Node {
    /// An append is durable: what others have to hear of its events is told to them.
    pub(super) fn deliver(&mut self, run_id: RunId, append: &RunAppend) {
        let seqs = append.writes.iter().filter_map(|write| match write {
            Write::OutboxSet { seq } => Some(*seq),
            _ => None,
        });
        let seqs: Vec<Seq> = seqs.collect();
        if seqs.is_empty() {
            return;
        }
        // Without it in memory the sweep does this.
        let Some(run) = self.slots.get(&run_id).and_then(|slot| slot.run.as_deref()) else { return };
        let told = |seq: &Seq| Some((*seq, run.outbound(append.events.iter().find(|e| e.seq == *seq)?)));
        let told: Vec<(Seq, Vec<Outbound>)> = seqs.iter().filter_map(told).collect();
        let namespace = run.start().namespace.clone();
        let now = self.now;
        let left = |source: &Source| source.left_until.is_some_and(|until| now < until);
        if !self.deliveries.sources.get(&run_id).is_some_and(left) {
            self.tell_others(run_id, &namespace, told);
        }
    }

    fn tell_others(&mut self, run: RunId, namespace: &str, told: Vec<(Seq, Vec<Outbound>)>) {
        for (seq, outbounds) in told {
            if self.deliveries.has(run, seq) {
                continue;
            }
            if outbounds.is_empty() {
                self.out.push(Output::OutboxDone(run, seq));
                continue;
            }
            let source = self.deliveries.sources.entry(run).or_default();
            if source.namespace.is_empty() {
                namespace.clone_into(&mut source.namespace);
            }
            source.waiting.insert(seq, outbounds);
            source.moved = self.now;
            if planted(Bug::DeliverAndForget) {
                self.out.push(Output::OutboxDone(run, seq));
            }
            self.deliveries.ready.insert(run);
        }
    }

    /// What this node is telling others of at database time `now`: nobody else has to. Of each run the first rows, which
    /// keep what follows.
    pub fn telling(&self, now: Timestamp) -> Vec<(RunId, Seq)> {
        let moves = |source: &&Source| now.since(source.moved) < STALLED && source.is_telling();
        let sources = || self.deliveries.sources.iter().filter(|(_, source)| moves(source));
        let each = TELLING_MAX.div_ceil(sources().count().max(1));
        let rows = |(run, source): (&RunId, &Source)| {
            let (run, seqs) = (*run, source.rows.keys().chain(source.waiting.keys()));
            seqs.take(each).map(move |seq| (run, *seq)).collect::<Vec<_>>()
        };
        sources().flat_map(rows).take(TELLING_MAX).collect()
    }

    /// The sweep has found events that others have perhaps not heard of.
    pub(super) fn outbox_found(&mut self, found: Vec<(RunId, Vec<Seq>)>) {
        let now = self.now;
        self.deliveries.sources.retain(|_, source| !source.is_quiet(now));
        let all = found.iter().map(|(_, seqs)| seqs.len()).sum::<usize>() < OUTBOX_CLAIM_MAX;
        for (run, mut seqs) in found {
            if !all {
                // What the run does now must not overtake what is not claimed of it.
                let source = self.deliveries.sources.entry(run).or_default();
                source.left_until = Some(now.after(LEFT_TO_THE_SWEEP));
            }
            seqs.retain(|seq| !self.deliveries.has(run, *seq));
            let told = |seq: &Seq| self.deliveries.told.rows.contains(&(run, *seq));
            // It may be that deleting them failed.
            self.out.extend(seqs.iter().filter(|seq| told(seq)).map(|seq| Output::OutboxDone(run, *seq)));
            seqs.retain(|seq| !told(seq));
            if !seqs.is_empty() && self.deliveries.loading.insert(run, all).is_none() {
                self.out.push(Output::LoadSource { run, seqs });
            }
        }
    }

    /// The history of a run that others have to hear of.
    pub(super) fn source_loaded(
        &mut self,
        run_id: RunId,
        seqs: &[Seq],
        events: Result<Vec<Event>, store::Error>,
    ) {
        let all = self.deliveries.loading.remove(&run_id).unwrap_or_default();
        let Ok(events) = events else { return };
        let run = match Run::fold(run_id, &events) {
            Ok(run) => run,
            Err(error) => return tracing::error!(run_id = %run_id, %error, "others do not hear of this run"),
        };
        let outbound = |seq: &Seq| {
            let event = usize::try_from(seq.saturating_sub(1)).ok().and_then(|at| events.get(at));
            (*seq, run.as_ref().zip(event).map(|(run, event)| run.outbound(event)).unwrap_or_default())
        };
        let told: Vec<(Seq, Vec<Outbound>)> = seqs.iter().map(outbound).collect();
        self.status.healed += 1;
        // The sweep tells all of it, in order.
        if let Some(source) = self.deliveries.sources.get_mut(&run_id).filter(|_| all) {
            source.left_until = None;
        }
        let namespace = run.map(|run| run.start().namespace.clone()).unwrap_or_default();
        self.tell_others(run_id, &namespace, told);
    }

    /// Tells what can be told now. At the end of each step, so that one end leads to the next without depth.
    pub(super) fn tell_ready(&mut self) {
        loop {
            if let Some((flight, run, command)) = self.deliveries.passed_on.pop() {
                self.add_job(run, Job::delivery(flight, command));
            } else if let Some(run) = self.deliveries.ready.pop_first() {
                self.tell_of(run);
            } else {
                return;
            }
        }
    }

    fn tell_of(&mut self, run: RunId) {
        while let Some((seq, outbound)) = self.deliveries.sources.get_mut(&run).and_then(Source::take) {
            match outbound {
                Outbound::Start(child) => {
                    let flight = self.deliveries.flight(run, seq, What::Start(child.clone()));
                    self.start_child(flight, *child);
                }
                Outbound::ToRun(to) => {
                    let flight = self.deliveries.flight(run, seq, What::ToRun(to.clone()));
                    self.tell_run(flight, run, *to);
                }
            }
        }
        let now = self.now;
        if self.deliveries.sources.get(&run).is_some_and(|source| source.is_quiet(now)) {
            self.deliveries.sources.remove(&run);
        }
    }

    /// Whether the run is there for the one that a flight comes from.
    pub(super) fn may_hear(&self, flight: u64, run: &Run) -> bool {
        self.deliveries.namespace(flight).is_none_or(|namespace| namespace == run.start().namespace)
    }

    fn tell_run(&mut self, flight: u64, source: RunId, to: ToRun) {
        match to.target {
            ExternalTarget::Run(run) => self.add_job(run, Job::delivery(flight, to.command)),
            ExternalTarget::Workflow(workflow_id) => {
                let namespace = self.deliveries.sources.get(&source).map(|source| source.namespace.clone());
                let namespace = namespace.unwrap_or_default();
                self.out.push(Output::FindTarget { flight, namespace, workflow_id });
            }
        }
    }

    /// Which run holds a workflow id.
    pub(super) fn target_found(&mut self, flight: u64, run: Result<Option<RunId>, store::Error>) {
        let Some(Flight { what: What::ToRun(to), .. }) = self.deliveries.flights.get(&flight) else { return };
        let command = to.command.clone();
        match run {
            Ok(Some(run)) => self.add_job(run, Job::delivery(flight, command)),
            Ok(None) => self.heard(flight, Heard::Nobody),
            Err(_) => self.heard(flight, Heard::Unknown),
        }
    }

    /// What a run did with what it was told.
    pub(super) fn heard(&mut self, flight: u64, heard: Heard) {
        let Some(found) = self.deliveries.flights.get(&flight) else { return };
        let (source, seq) = (found.source, found.seq);
        let to = match (&found.what, &heard) {
            (What::ToRun(to), Heard::Refused(Rejection::RunClosed { successor: Some(next), .. })) => {
                // Chains are long, and the next run may be in memory and closed, too: not from here, but in turn.
                let (next, command) = (*next, to.command.clone());
                return self.deliveries.passed_on.push((flight, next, command));
            }
            (What::ToRun(to), _) => to.clone(),
            (What::Start(_), _) => return,
            (What::Reply, Heard::Unknown) => return self.landed(flight, true, false),
            (What::Reply, Heard::Taken { wrote }) => {
                let wrote = *wrote;
                return self.landed(flight, false, wrote);
            }
            (What::Reply, _) => return self.landed(flight, false, false),
        };
        let failure = match heard {
            Heard::Taken { .. } => None,
            Heard::Refused(rejection) => Some(rejection.to_failure()),
            Heard::Unknown => return self.landed(flight, true, false),
            // Its start comes first, and is told again with this.
            Heard::Nobody if to.early => return self.landed(flight, true, false),
            Heard::Nobody => {
                Some(Failure::new("RunNotFound", "no such run in the namespace").non_retryable())
            }
        };
        match to.reply {
            Some((op, requested)) => {
                self.reply(source, seq, CommandBody::ResolveExternal { op, requested, failure });
                self.landed(flight, false, false);
            }
            None => self.landed(flight, false, false),
        }
    }

    /// What became of a child that was to begin.
    pub(super) fn child_heard(&mut self, flight: u64, result: Result<Started, Error>) {
        let Some(found) = self.deliveries.flights.get(&flight) else { return };
        let What::Start(child) = &found.what else { return };
        let (source, seq, op, run_id) = (found.source, found.seq, child.child, child.run_id);
        let (scheduled, report) = (child.scheduled, child.report);
        let failure = match result {
            Ok(started) if started.run_id == run_id => {
                if report {
                    self.reply(source, seq, CommandBody::ChildStarted { child: op, scheduled });
                }
                return self.landed(flight, false, false);
            }
            Ok(other) => {
                let message = format!("its start request was used before, for run {}", other.run_id);
                Failure::new("AlreadyStarted", message).non_retryable()
            }
            Err(Error::Rejected(rejection)) => rejection.to_failure(),
            Err(_) => return self.landed(flight, true, false),
        };
        let outcome = ChildOutcome::NotStarted(failure);
        let closed = ChildClosed { child: op, scheduled, run_id, outcome };
        self.reply(source, seq, CommandBody::ChildClosed(Box::new(closed)));
        self.landed(flight, false, false);
    }

    /// Tells the run that asked what became of it. That is part of its row: the append deletes it.
    fn reply(&mut self, source: RunId, seq: Seq, body: CommandBody) {
        if let Some(row) = self.deliveries.sources.get_mut(&source).and_then(|s| s.rows.get_mut(&seq)) {
            row.flying += 1;
        }
        let flight = self.deliveries.flight(source, seq, What::Reply);
        let id = CommandId::derived(&[b"reply", source.as_bytes(), &seq.to_be_bytes()]);
        self.add_job(source, Job::delivery(flight, Command { id, actor: Actor::System, body }));
    }

    /// One thing of a row is over: done, or left to the sweep.
    fn landed(&mut self, flight: u64, stays: bool, deleted: bool) {
        let Some(Flight { source: run, seq, .. }) = self.deliveries.flights.remove(&flight) else { return };
        let Some(source) = self.deliveries.sources.get_mut(&run) else { return };
        let Some(row) = source.rows.get_mut(&seq) else { return };
        source.moved = self.now;
        row.flying -= 1;
        row.stays |= stays;
        row.deleted |= deleted;
        if row.flying == 0 && row.untold.is_empty() {
            let (done, late) = (!row.stays && !row.deleted, row.stays && !row.start);
            source.rows.remove(&seq);
            if late {
                // What follows must not overtake it.
                source.waiting.clear();
                source.left_until = Some(self.now.after(LEFT_TO_THE_SWEEP));
            }
            if done {
                self.deliveries.told.note((run, seq), self.now);
                self.out.push(Output::OutboxDone(run, seq));
            }
        }
        self.deliveries.ready.insert(run);
    }
}
