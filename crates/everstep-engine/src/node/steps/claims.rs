//! Claims of attempts: who asks the store next for what waits in a queue.
//!
//! Every end of an attempt makes room, and every hint may be for any worker, so many workers of one queue would ask
//! all at once. Only a few claims from a queue are under way at one time; whoever wants more waits in line, and what
//! comes meanwhile is in its claim when its turn comes. A queue that is held back by its limits is asked by one at a
//! time: the store lets the others wait anyway, each with a connection.

use std::collections::VecDeque;

use everstep_core::{Duration, QueueKey, Timestamp};
use everstep_store::{self as store, StepClaims, StepWant};

use super::{CLAIM_PAUSE, StepsOut, UNKNOWN_CLAIM};
use crate::node::sessions::Session;
use crate::node::{Node, Output};

/// Claims from one queue that are under way at one time.
const AT_ONE_TIME: usize = 4;
/// For how long a queue counts as held back after its limits stood in the way.
const LIMITED_FOR: Duration = Duration::from_secs(60);

/// The claims from one queue.
#[derive(Debug, Default)]
pub(super) struct Line {
    under_way: usize,
    /// Streams of workers that have room, each once.
    waiting: VecDeque<u64>,
    /// One claim at a time until then.
    limited_until: Timestamp,
    /// The worker that was served last: when all are asked, the one after it comes first.
    last: u64,
}

impl Line {
    fn is_free(&self, now: Timestamp) -> bool {
        let places = if self.limited_until > now { 1 } else { AT_ONE_TIME };
        self.under_way < places
    }

    fn wait(&mut self, link: u64) {
        if !self.waiting.contains(&link) {
            self.waiting.push_back(link);
        }
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.under_way == 0 && self.waiting.is_empty() && self.limited_until <= now
    }
}

impl Node {
    /// Another node may have been told of what waits, and have nobody who can run it. Whoever has room here looks for
    /// itself.
    pub(super) fn claim_what_others_left(&mut self) {
        if !self.config.shared {
            return;
        }
        let hosts = self.sessions.iter().filter(|(_, session)| session.steps.is_some());
        let hosts: Vec<(u64, Vec<QueueKey>)> =
            hosts.map(|(&link, session)| (link, session.queues.clone())).collect();
        for (link, queues) in hosts {
            for queue in queues {
                if !self.steps.limited.contains_key(&queue) {
                    self.claim_for(link, &queue);
                }
            }
        }
    }

    /// Something may have come into a queue: claims for every worker here that has room, and for the others once they
    /// have some.
    pub(in crate::node) fn claim_steps(&mut self, queue: &QueueKey) {
        let serves =
            |(_, session): &(&u64, &Session)| session.queues.contains(queue) && session.steps.is_some();
        let mut links: Vec<u64> = self.sessions.iter().filter(serves).map(|(&link, _)| link).collect();
        let last = self.steps.lines.get(queue).map_or(0, |line| line.last);
        let first = links.partition_point(|&link| link <= last);
        links.rotate_left(first);
        for link in links {
            if let Some(work) = self.work_of(link) {
                work.poke(queue);
            }
            self.claim_for(link, queue);
        }
    }

    /// Claims attempts of a queue for a worker, as many as it has room for, when it is its turn.
    pub(super) fn claim_for(&mut self, link: u64, queue: &QueueKey) {
        if self.draining {
            return;
        }
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&link) else { return };
        let Some(work) = &mut session.steps else { return };
        if !work.may_claim(queue) {
            return;
        }
        if let Some(line) = self.steps.lines.get_mut(queue).filter(|line| !line.is_free(now)) {
            return line.wait(link);
        }
        let (max, ready_at) = work.reserve(queue, now);
        if let Some(at) = ready_at {
            let queue = queue.clone();
            self.out.push(Output::Steps(StepsOut::WaitingAt { queue, at }));
        }
        if max == 0 {
            return;
        }
        let line = self.steps.lines.entry(queue.clone()).or_default();
        line.under_way += 1;
        line.last = link;
        let (session, queue, types, claim) = (session.id, queue.clone(), work.types(), self.ids.claim_id());
        let want = StepWant { session, queue, types, claim };
        self.out.push(Output::Steps(StepsOut::Claim { link, want, max }));
    }

    /// The store's answer to a claim.
    pub(super) fn steps_claimed(
        &mut self,
        link: u64,
        queue: QueueKey,
        max: usize,
        claims: Result<StepClaims, store::Error>,
    ) {
        if let Some(line) = self.steps.lines.get_mut(&queue) {
            line.under_way = line.under_way.saturating_sub(1);
        }
        let taken = claims.as_ref().map_or(0, |claims| claims.claims.len());
        let poked = self.work_of(link).is_some_and(|work| work.reserved(&queue, max, taken));
        let StepClaims { claims, again } = match claims {
            Ok(claims) => claims,
            Err(error) => {
                self.claim_failed(link, &queue, &error);
                return self.next_in_line(&queue);
            }
        };
        // What came meanwhile is held back too, until that is over.
        let more = (poked || taken >= max) && !(again.is_some() && taken == 0);
        if let (false, Some(work)) = (more, self.work_of(link)) {
            work.dry_up(&queue);
        }
        if let Some(at) = again {
            self.held_back(&queue, at, taken == 0);
        }
        for claim in claims {
            self.give_step(link, claim);
        }
        if more {
            // Behind those that wait.
            self.steps.lines.entry(queue.clone()).or_default().wait(link);
        }
        self.next_in_line(&queue);
    }

    /// Nobody knows what the claim did, and everybody else would fare alike: all are asked again after a pause.
    fn claim_failed(&mut self, link: u64, queue: &QueueKey, error: &store::Error) {
        tracing::warn!(%error, "steps not claimed");
        let now = self.now;
        if let Some(work) = self.work_of(link) {
            work.doubt_claims(now.after(UNKNOWN_CLAIM).after(UNKNOWN_CLAIM));
        }
        if let Some(line) = self.steps.lines.get_mut(queue) {
            line.waiting.clear();
        }
        self.say(StepsOut::WaitingAt { queue: queue.clone(), at: now.after(CLAIM_PAUSE) });
    }

    /// The limits of the queue stand in the way until `at`; of everything, when a claim got nothing at all.
    fn held_back(&mut self, queue: &QueueKey, at: Timestamp, of_all: bool) {
        let now = self.now;
        if let Some(line) = self.steps.lines.get_mut(queue) {
            line.limited_until = now.after(LIMITED_FOR);
            if of_all {
                // They are asked again then, or when an attempt ends here.
                line.waiting.clear();
            }
        }
        let sooner = self.steps.limited.get(queue).is_none_or(|known| at < *known);
        if sooner {
            self.steps.limited.insert(queue.clone(), at);
            self.say(StepsOut::WaitingAt { queue: queue.clone(), at });
        }
    }

    fn next_in_line(&mut self, queue: &QueueKey) {
        let now = self.now;
        while let Some(line) = self.steps.lines.get_mut(queue).filter(|line| line.is_free(now)) {
            let Some(link) = line.waiting.pop_front() else {
                if line.is_over(now) {
                    self.steps.lines.remove(queue);
                }
                return;
            };
            self.claim_for(link, queue);
        }
    }
}
