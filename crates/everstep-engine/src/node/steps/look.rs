//! What the store says that workers have, against what they were given: for one that has come back, and now and then
//! for all.

use everstep_core::{Duration, SessionId, Timestamp};
use everstep_store::{self as store, ClaimKey, ClaimRow};

use super::work::{Held, Work};
use super::{Finish, Node, StepJob, StepsOut, UNKNOWN_CLAIM, claim_of};
use crate::node::Output;
use crate::{StepKey, WorkerOut};

/// Questions to one worker at one time; what is left is asked at the next look.
const ASKS_MAX: usize = 1_000;
/// How long an end that could not be decided is left alone.
const UNDECIDED_PAUSE: Duration = Duration::from_secs(5);
/// Ends that are asked for again. Beyond, a worker says its own again on its next stream.
const UNDECIDED_MAX: usize = 10_000;

impl Node {
    pub(super) fn look_at_steps(&mut self) {
        let now = self.now;
        self.ask_for_undecided();
        let unsure = |work: &Work| work.is_unsure(now);
        let sessions: Vec<SessionId> = self
            .sessions
            .values()
            .filter(|session| session.steps.as_ref().is_some_and(unsure))
            .map(|session| session.id)
            .collect();
        if !sessions.is_empty() {
            self.say(StepsOut::Find { sessions, since: now });
        }
    }

    /// An end could not be decided: its run cannot be read, or the store refuses what would record it. Nobody knows
    /// what it is worth, so the worker keeps it, and is asked for it again after a while.
    pub(in crate::node) fn step_undecided(&mut self, job: &StepJob) {
        let StepJob::Finish(finish) = job else { return };
        let Finish { link, key, .. } = **finish;
        let at = self.now.after(UNDECIDED_PAUSE);
        let Some(work) = self.work_of(link) else { return };
        if let Some(held) = work.get((key.run_id, key.step)).filter(|held| held.key == key) {
            held.ending = None;
        }
        if self.steps.undecided.len() < UNDECIDED_MAX {
            self.steps.undecided.insert((link, key), at);
        }
    }

    fn ask_for_undecided(&mut self) {
        let Self { steps, sessions, out, now, .. } = self;
        steps.undecided.retain(|(link, key), at| {
            let (link, here) = (*link, sessions.contains_key(link));
            let asks = here && *at <= *now;
            if asks {
                out.push(Output::ToWorker { link, message: WorkerOut::StepAsk(*key) });
            }
            here && !asks
        });
    }

    /// What the store says that sessions have, against what their workers were given.
    pub(super) fn step_claims_found(
        &mut self,
        sessions: &[SessionId],
        since: Timestamp,
        rows: Result<Vec<ClaimRow>, store::Error>,
    ) {
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => return self.step_claims_unknown(sessions, since, &error),
        };
        for session in sessions {
            let Some(&link) = self.links.get(session) else { continue };
            let own: Vec<&ClaimRow> = rows.iter().filter(|row| row.session == *session).collect();
            let Some(work) = self.work_of(link) else { continue };
            if work.came_after(since) {
                // It has a look of its own under way.
                continue;
            }
            if work.is_resuming() {
                self.steps_resumed(link, &own);
            } else {
                self.compare_steps(link, since, &own);
            }
        }
    }

    /// A worker that has come back cannot be told what it may go on with: it has to come again.
    fn step_claims_unknown(&mut self, sessions: &[SessionId], since: Timestamp, error: &store::Error) {
        tracing::warn!(%error, "claims of steps not found");
        for session in sessions {
            let Some(&link) = self.links.get(session) else { continue };
            if self.work_of(link).is_some_and(|work| work.is_resuming() && !work.came_after(since)) {
                self.disconnected(link);
            }
        }
    }

    /// A worker that has come back: it goes on with what is still its own.
    fn steps_resumed(&mut self, link: u64, rows: &[&ClaimRow]) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&link) else { return };
        let (Some(work), queues) = (&mut session.steps, session.queues.clone()) else { return };
        let Some(first) = queues.first() else { return };
        let (held, early) = work.resume();
        let is = |row: &ClaimRow, key: &StepKey| row.key == claim_of(key) && row.attempt == key.attempt;
        let mut canceled = Vec::new();
        let mut over = Vec::new();
        for key in &held {
            match rows.iter().find(|row| is(row, key)) {
                Some(row) => {
                    work.hold((key.run_id, key.step), Held::new(*key, first.clone(), now));
                    canceled.extend(row.canceled.then_some(*key));
                }
                None => over.push(*key),
            }
        }
        // The claim was made, and the worker never heard of it; unless this is a late word of a worker that has gone on
        // elsewhere, and runs it there. Only the worker knows.
        let unheard = rows.iter().filter(|row| !held.iter().any(|key| is(row, key)));
        let unheard: Vec<StepKey> = unheard.take(ASKS_MAX).map(|row| key_of(row)).collect();
        if !unheard.is_empty() {
            work.doubt_claims(now.after(UNKNOWN_CLAIM).after(UNKNOWN_CLAIM));
        }
        for key in unheard {
            self.out.push(Output::ToWorker { link, message: WorkerOut::StepAsk(key) });
        }
        canceled.into_iter().for_each(|key| self.cancel_held(link, key));
        for (key, said, details) in early {
            self.step_said(link, key, said, details);
        }
        over.into_iter().for_each(|key| self.tell_gone(link, key));
        queues.iter().for_each(|queue| self.claim_steps(queue));
    }

    /// The look of the sweep, at a session that stays.
    fn compare_steps(&mut self, link: u64, since: Timestamp, rows: &[&ClaimRow]) {
        let Some(work) = self.work_of(link) else { return };
        let mut gone = Vec::new();
        let mut canceled = Vec::new();
        for held in work.all() {
            let row = rows.iter().find(|row| row.key == claim_of(&held.key));
            match row {
                Some(row) if row.canceled => canceled.push(held.key),
                Some(_) => {}
                // It was given out after the store was asked, or its end is on its way to the log.
                None if held.since >= since || held.ending.is_some() => {}
                None => gone.push(held.key),
            }
        }
        let known = |row: &&&ClaimRow| work.peek((row.key.run, row.key.step)).is_some();
        let old = |row: &&&ClaimRow| row.claimed_at.after(UNKNOWN_CLAIM) < since;
        let unknown: Vec<StepKey> =
            rows.iter().filter(old).filter(|row| !known(row)).take(ASKS_MAX).map(|row| key_of(row)).collect();
        for key in unknown {
            self.status.healed += 1;
            self.out.push(Output::ToWorker { link, message: WorkerOut::StepAsk(key) });
        }
        canceled.into_iter().for_each(|key| self.cancel_held(link, key));
        gone.into_iter().for_each(|key| self.gone(link, key));
    }
}

fn key_of(row: &ClaimRow) -> StepKey {
    let ClaimKey { run, step, claim } = row.key;
    StepKey { run_id: run, step, attempt: row.attempt, claim }
}
