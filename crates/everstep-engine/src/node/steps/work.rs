//! What one worker runs of queued steps, and what it can still take.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{Duration, OpId, Payload, QueueKey, RunId, Timestamp};

use crate::{StepKey, StepOffer, StepSaid};

/// Attempts claimed at one time, with their inputs: each is up to 2 MiB. Where there are more, the next claim follows.
const CLAIM_MAX: usize = 32;

/// Names a step.
pub(in crate::node) type Place = (RunId, OpId);

/// What a worker said before it was known what it holds.
pub(super) type Early = (StepKey, StepSaid, Option<Payload>);

/// An attempt that a worker was given.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) key: StepKey,
    /// Where it came from; for one that came along with its worker, one of the worker's.
    pub(super) queue: QueueKey,
    pub(super) since: Timestamp,
    pub(super) told_cancel: bool,
    /// What the worker said last about it; what follows from that is under way.
    pub(super) ending: Option<StepSaid>,
}

impl Held {
    pub(super) fn new(key: StepKey, queue: QueueKey, since: Timestamp) -> Self {
        Self { key, queue, since, told_cancel: false, ending: None }
    }
}

/// The queued steps of one worker.
#[derive(Debug)]
pub(in crate::node) struct Work {
    types: BTreeSet<String>,
    slots: usize,
    rate: Rate,
    held: BTreeMap<Place, Held>,
    /// Claims under way, each with the slots that are kept for it.
    claiming: BTreeMap<QueueKey, usize>,
    /// Queues in which nothing was left for it at the last claim, as far as it has heard.
    dry: BTreeSet<QueueKey>,
    /// Queues that something came into while a claim from them was under way.
    poked: BTreeSet<QueueKey>,
    /// When a queue is looked at again, the rate having stood in the way.
    waits: BTreeMap<QueueKey, Timestamp>,
    /// What the worker says it holds, until that is compared with what it was given.
    resuming: Option<Resuming>,
    /// Until then a claim may have been made that nobody was told of.
    unsure_until: Timestamp,
    /// It was connected before, perhaps to a node that has not noticed yet that it has gone: that one may claim for it
    /// still, for as long as it likes.
    moved: bool,
}

#[derive(Debug)]
struct Resuming {
    /// When it came back.
    since: Timestamp,
    held: Vec<StepKey>,
    early: Vec<Early>,
}

/// How many attempts may begin in a second.
#[derive(Debug)]
struct Rate {
    per_second: f64,
    tokens: f64,
    at: Timestamp,
}

impl Rate {
    /// Attempts that may begin at once after a quiet second.
    fn burst(&self) -> f64 {
        self.per_second.max(1.0)
    }

    fn refill(&mut self, now: Timestamp) {
        let passed = now.since(self.at).to_std().as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst());
        self.at = self.at.max(now);
    }

    /// Attempts that may begin now.
    fn room(&mut self, now: Timestamp) -> usize {
        if self.per_second <= 0.0 {
            return usize::MAX;
        }
        self.refill(now);
        // Not negative, and at most as large as the burst.
        self.tokens.max(0.0) as usize
    }

    /// When the next one may begin.
    fn next(&self, now: Timestamp) -> Timestamp {
        let seconds = ((1.0 - self.tokens) / self.per_second).max(0.0);
        // Rounded up: a moment too early would find no room.
        now.after(Duration::from_micros(((seconds * 1e6).ceil() as u64).saturating_add(1)))
    }

    fn take(&mut self, count: usize) {
        if self.per_second > 0.0 {
            self.tokens -= count as f64;
        }
    }

    fn give_back(&mut self, count: usize) {
        if self.per_second > 0.0 {
            self.tokens = (self.tokens + count as f64).min(self.burst());
        }
    }
}

impl Work {
    pub(in crate::node) fn new(offer: StepOffer, resumed: bool, now: Timestamp) -> Self {
        let StepOffer { types, slots, per_second, held } = offer;
        let tokens = per_second.max(1.0);
        Self {
            types: types.into_iter().collect(),
            slots: slots as usize,
            rate: Rate { per_second, tokens, at: now },
            held: BTreeMap::new(),
            claiming: BTreeMap::new(),
            dry: BTreeSet::new(),
            poked: BTreeSet::new(),
            waits: BTreeMap::new(),
            resuming: resumed.then(|| Resuming { since: now, held, early: Vec::new() }),
            unsure_until: now,
            moved: resumed,
        }
    }

    /// Whether it takes attempts of steps of this name at all.
    pub(in crate::node) fn takes(&self, name: &str) -> bool {
        self.slots > 0 && self.types.contains(name)
    }

    pub(super) fn types(&self) -> Vec<String> {
        self.types.iter().cloned().collect()
    }

    pub(super) fn is_resuming(&self) -> bool {
        self.resuming.is_some()
    }

    /// Whether it has come back since the store was asked. What was seen then may be older than what the worker holds:
    /// it would be told that an attempt is not its own which it was given meanwhile. What is asked later than its
    /// session was opened here has seen every claim that the worker knew of when it said so, also in the same instant,
    /// because the opening went to the store and back.
    pub(super) fn came_after(&self, since: Timestamp) -> bool {
        self.resuming.as_ref().is_some_and(|resuming| since < resuming.since)
    }

    /// What the worker said that it holds, and what it has said since. From here on it may be given more.
    pub(super) fn resume(&mut self) -> (Vec<StepKey>, Vec<Early>) {
        self.resuming.take().map(|resuming| (resuming.held, resuming.early)).unwrap_or_default()
    }

    /// Keeps what the worker says until it is known what it holds. False when that is known.
    pub(super) fn keep_early(&mut self, key: StepKey, said: &StepSaid, details: Option<&Payload>) -> bool {
        let Some(resuming) = &mut self.resuming else { return false };
        resuming.early.push((key, said.clone(), details.cloned()));
        true
    }

    /// The worker takes nothing more.
    pub(in crate::node) fn close(&mut self) {
        self.slots = 0;
    }

    pub(super) fn limit(&mut self, slots: u32, per_second: f64, now: Timestamp) {
        self.slots = slots as usize;
        self.rate.refill(now);
        self.rate.per_second = per_second;
        self.rate.tokens = self.rate.tokens.min(self.rate.burst());
    }

    fn free_slots(&self) -> usize {
        if self.resuming.is_some() || self.types.is_empty() {
            return 0;
        }
        let claiming: usize = self.claiming.values().sum();
        self.slots.saturating_sub(self.held.len() + claiming)
    }

    /// Something may have come into the queue.
    pub(super) fn poke(&mut self, queue: &QueueKey) {
        self.dry.remove(queue);
        if self.claiming.contains_key(queue) {
            self.poked.insert(queue.clone());
        }
    }

    /// Nothing was left in the queue.
    pub(super) fn dry_up(&mut self, queue: &QueueKey) {
        self.dry.insert(queue.clone());
    }

    pub(super) fn is_dry(&self, queue: &QueueKey) -> bool {
        self.dry.contains(queue)
    }

    /// Whether a claim from the queue has a place here, as far as the rate allows it.
    pub(super) fn may_claim(&self, queue: &QueueKey) -> bool {
        self.free_slots() > 0 && !self.claiming.contains_key(queue)
    }

    /// Attempts that it can take now.
    pub(in crate::node) fn room(&mut self, now: Timestamp) -> usize {
        match self.free_slots() {
            0 => 0,
            free => free.min(self.rate.room(now)),
        }
    }

    /// Keeps room for a claim from the queue: how much, and when there is some if only the rate stands in the way.
    pub(super) fn reserve(&mut self, queue: &QueueKey, now: Timestamp) -> (usize, Option<Timestamp>) {
        if !self.may_claim(queue) {
            return (0, None);
        }
        let room = self.free_slots().min(self.rate.room(now)).min(CLAIM_MAX);
        if room == 0 {
            let waits = self.waits.get(queue).is_some_and(|at| *at > now);
            let next = (!waits).then(|| self.rate.next(now));
            self.waits.extend(next.map(|at| (queue.clone(), at)));
            return (0, next);
        }
        self.rate.take(room);
        self.claiming.insert(queue.clone(), room);
        (room, None)
    }

    /// The instant that the rate made a queue wait for has come.
    pub(super) fn wait_over(&mut self, queue: &QueueKey) {
        self.waits.remove(queue);
    }

    /// A claim has been answered. True when something has come into the queue since it was made.
    pub(super) fn reserved(&mut self, queue: &QueueKey, max: usize, taken: usize) -> bool {
        self.claiming.remove(queue);
        self.rate.give_back(max.saturating_sub(taken));
        self.poked.remove(queue)
    }

    /// Nobody knows what a claim did.
    pub(super) fn doubt_claims(&mut self, until: Timestamp) {
        self.unsure_until = until;
    }

    /// Whether the store has to be asked what the session has.
    pub(super) fn is_unsure(&self, now: Timestamp) -> bool {
        self.resuming.is_none() && (self.moved || !self.held.is_empty() || now < self.unsure_until)
    }

    pub(super) fn hold(&mut self, place: Place, held: Held) {
        self.held.insert(place, held);
    }

    pub(super) fn get(&mut self, place: Place) -> Option<&mut Held> {
        self.held.get_mut(&place)
    }

    pub(super) fn peek(&self, place: Place) -> Option<&Held> {
        self.held.get(&place)
    }

    /// The worker does not have it any more.
    pub(super) fn release(&mut self, key: StepKey) -> Option<Held> {
        let place = (key.run_id, key.step);
        self.held.get(&place).is_some_and(|held| held.key == key).then(|| self.held.remove(&place))?
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    pub(super) fn of_run(&self, run: RunId) -> impl Iterator<Item = &Held> {
        self.held.range((run, OpId(0))..=(run, OpId(u32::MAX))).map(|(_, held)| held)
    }
}

#[cfg(test)]
mod tests;
