//! Updates: asking a run's code whether it agrees, and recording that it did.
//!
//! The code agrees as it stands after some event, and the core takes the acceptance only right behind that one. When
//! another event was faster, the code is asked again. A run to which something happens all the time is held still for
//! a moment while it is asked, so that it agrees in the end.

use std::collections::BTreeMap;

use everstep_core::{AskId, Command, CommandBody, Duration, Failure, Rejection, RunId, Timestamp};
use everstep_store::AskKind;

use super::asks::Asker;
use super::slot::Job;
use super::{Node, Output};
use crate::{Answer, AskTarget, Error, Query};

/// How often the code is asked about one update.
const TRIES_MAX: u32 = 8;
/// Of these, so many without holding the run still.
const TRIES_FREE: u32 = 2;
/// How long a run is held still for one update, in all.
const HOLD_MAX: Duration = Duration::from_secs(1);
/// What a run whose code has come to its end is given to say so.
const END_WAIT: Duration = Duration::from_millis(20);

/// Updates that are not accepted yet, by request.
pub(super) type Updates = BTreeMap<u64, Pending>;

/// One update that is not accepted yet.
#[derive(Debug)]
pub(super) struct Pending {
    run: RunId,
    ask: AskId,
    command: Command,
    /// When nobody waits for it any more.
    until: Timestamp,
    tries: u32,
    /// Until when the run may be held still for it; `None` before it was.
    hold: Option<Timestamp>,
    /// The code has come to its end, and the log is looked at next.
    ends: bool,
}

impl Node {
    /// A client wants something of a run's code.
    pub(super) fn update(
        &mut self,
        (request, ask): (u64, AskId),
        run: RunId,
        command: Command,
        wait: Duration,
    ) {
        if self.draining {
            return self.out.push(Output::Done { request, result: Err(Error::Stopping) });
        }
        let until = self.now.after(wait);
        let pending =
            Pending { run, ask, command: command.clone(), until, tries: 0, hold: None, ends: false };
        self.updates.insert(request, pending);
        // It says that nothing was seen, so it is refused unless the update is known already.
        self.add_job(run, Job::of_client(request, command));
    }

    /// Answers a client whose command was decided.
    pub(super) fn answer_client(
        &mut self,
        run_id: RunId,
        request: u64,
        body: &CommandBody,
        result: Result<(), Rejection>,
    ) {
        let CommandBody::AcceptUpdate { update_id, .. } = body else {
            return self.out.push(Output::Done { request, result: result.map_err(Error::Rejected) });
        };
        let run = self.slots.get(&run_id).and_then(|slot| slot.run.as_ref());
        match (result, run.map(|run| run.update(update_id))) {
            (Ok(()), Some(Some(seq))) => self.out.push(Output::Accepted { request, seq }),
            (Err(Rejection::UnseenEvents { .. }), _) => self.ask_for_update(run_id, request),
            (Err(rejection), _) => {
                self.out.push(Output::Done { request, result: Err(Error::Rejected(rejection)) });
            }
            // Another node may know; it is asked by whoever asks again.
            (Ok(()), _) => {
                self.out.push(Output::Done { request, result: Err(Error::Contention { attempts: 1 }) })
            }
        }
    }

    /// Asks the code whether it agrees, as the run stands now.
    fn ask_for_update(&mut self, run_id: RunId, request: u64) {
        let refused = |error| Output::Done { request, result: Err(error) };
        let full = self.asks_are_full();
        let Some(pending) = self.updates.get_mut(&request) else { return };
        let Some(slot) = self.slots.get_mut(&run_id) else { return };
        let Some(run) = &slot.run else {
            return self.out.push(refused(Error::Contention { attempts: pending.tries }));
        };
        pending.tries += 1;
        if pending.tries > TRIES_MAX {
            return self.out.push(refused(Error::Contention { attempts: TRIES_MAX }));
        }
        if full || pending.until <= self.now {
            let error = if full { Error::Overloaded } else { Error::NoAnswer };
            return self.out.push(refused(error));
        }
        let CommandBody::AcceptUpdate { name, input, .. } = &pending.command.body else { return };
        let query = Query { kind: AskKind::Update, name: name.clone(), input: input.clone() };
        let target = AskTarget {
            run_id,
            queue: run.queue(),
            workflow_type: run.start().workflow_type.clone(),
            build_id: run.row().build_id,
            tail: run.seq(),
        };
        let (ask, wait) = (pending.ask, pending.until.since(self.now));
        if pending.tries > TRIES_FREE {
            let until = *pending.hold.get_or_insert(self.now.after(HOLD_MAX));
            if until > self.now && slot.held.is_none() {
                slot.held = Some(request);
                self.out.push(Output::HoldFor { run: run_id, request, wait: until.since(self.now) });
            }
        }
        self.put(ask, (target, query), wait, Asker::Update(request));
    }

    /// What the code said to an update.
    pub(super) fn update_answered(&mut self, request: u64, result: Result<Answer, Error>) {
        let Some(pending) = self.updates.get(&request) else { return };
        let (run, mut command) = (pending.run, pending.command.clone());
        let held =
            self.slots.get_mut(&run).is_some_and(|slot| slot.held.take_if(|r| *r == request).is_some());
        match result {
            Ok(Answer { seq, .. }) => {
                if let CommandBody::AcceptUpdate { seen, .. } = &mut command.body {
                    *seen = seq;
                }
                let job = Job::of_client(request, command);
                let inbox = &mut self.slots.entry(run).or_default().inbox;
                // What was held back came later than the question.
                if held { inbox.push_front(job) } else { inbox.push_back(job) }
            }
            // The code has come to its end, and that is on its way to the log: it says what there is to say, and which
            // run follows.
            Err(Error::QueryFailed { kind, .. }) if kind == Failure::RUN_ENDS => {
                let wait = END_WAIT;
                self.out.push(Output::HoldFor { run, request, wait });
                if let Some(pending) = self.updates.get_mut(&request) {
                    pending.tries = 0;
                    pending.ends = true;
                }
            }
            Err(error) => {
                let error = match error {
                    Error::QueryFailed { kind, message } => Error::UpdateRejected { kind, message },
                    error => error,
                };
                self.out.push(Output::Done { request, result: Err(error) });
            }
        }
        self.work(run);
    }

    /// A run was held still for long enough, or has had the time to end.
    pub(super) fn hold_over(&mut self, run: RunId, request: u64) {
        if let Some(pending) = self.updates.get_mut(&request)
            && std::mem::take(&mut pending.ends)
        {
            let command = pending.command.clone();
            return self.add_job(run, Job::of_client(request, command));
        }
        if self.slots.get_mut(&run).is_some_and(|slot| slot.held.take_if(|r| *r == request).is_some()) {
            self.work(run);
        }
    }

    /// The owner of a run that is held still cannot answer before what it has told ahead of the record is recorded.
    pub(super) fn break_hold(&mut self, run: RunId) {
        if let Some(slot) = self.slots.get_mut(&run) {
            slot.held = None;
        }
    }

    /// Requests that were answered in whichever way are forgotten.
    pub(super) fn forget_updates(&mut self) {
        if self.updates.is_empty() {
            return;
        }
        for output in &self.out {
            if let Output::Done { request, .. } | Output::Accepted { request, .. } = output {
                self.updates.remove(request);
            }
        }
    }
}
