//! Queued steps in the random sequence. Their instants are long past or far off, so that no clock decides.

use everstep_core::{Duration, OpId, RunId, StepTask, Timestamp, Write};
use rand_chacha::rand_core::Rng;
use uuid::Uuid;

use super::{MANY, QUEUES, World, ok};
use crate::{AttemptKey, Beat, ClaimId, ClaimKey, QueueLimits, StepFilter, StepState, StepWant, Store};

const NAMES: [&str; 2] = ["charge", "ship"];
const PRIORITIES: [u8; 3] = [1, 3, 5];

impl World {
    pub(super) fn step_write(&mut self) -> Write {
        let step = OpId(self.pick(&[1, 2, 3, u32::MAX]));
        match self.below(16) {
            0 => Write::StepTasksCleared,
            1..4 => Write::StepTaskDeleted(step),
            _ => Write::StepTaskSet(Box::new(self.task(step))),
        }
    }

    fn task(&mut self, step: OpId) -> StepTask {
        let far = |n: i64| Timestamp::from_micros(Timestamp::MAX.as_micros() - n);
        let past = Timestamp::from_micros(self.below(3).cast_signed() as i64);
        let visible = [past, past, past, far(1), StepTask::HELD];
        let never = Some(Duration::from_secs(100 * 366 * 24 * 3_600));
        StepTask {
            step,
            name: self.pick(&NAMES).to_owned(),
            attempt: self.pick(&[1, 2]),
            queue: self.queue(),
            priority: self.pick(&PRIORITIES),
            // The first event is there whatever becomes of the others.
            scheduled: 1,
            visible_at: self.pick(&visible),
            start_by: self.pick(&[None, None, None, Some(past), Some(far(2))]),
            close_by: self.pick(&[None, None, None, Some(past), Some(far(3))]),
            start_to_close: self.pick(&[None, never]),
            heartbeat: self.pick(&[None, never]),
            canceled: self.chance(8),
        }
    }

    /// One call about queued steps to both.
    pub(super) async fn step_call(&mut self, a: &dyn Store, b: &dyn Store, at: &str) {
        match self.below(8) {
            0..5 => self.claim(a, b, at).await,
            5 => {
                let key = self.claim_key();
                let (x, y) = match self.chance(2) {
                    true => (a.return_step(key).await, b.return_step(key).await),
                    false => (a.defer_step(key).await, b.defer_step(key).await),
                };
                assert_eq!(ok(x), ok(y), "{at}: return or defer {key:?}");
            }
            6 => {
                let beats: Vec<Beat> = (0..self.below(4)).map(|_| self.beat()).collect();
                let (x, y) = (a.beat_steps(&beats).await, b.beat_steps(&beats).await);
                assert_eq!(ok(x), ok(y), "{at}: {beats:?}");
                let ClaimKey { run, step, .. } = self.claim_key();
                let (attempt, details) =
                    (AttemptKey { run, step, attempt: self.pick(&[1, 2]) }, self.payload());
                let details = self.chance(2).then_some(&details);
                let (x, y) =
                    (a.beat_by_token(attempt, details).await, b.beat_by_token(attempt, details).await);
                assert_eq!(ok(x), ok(y), "{at}: {attempt:?}");
            }
            _ => {
                let max_running = self.pick(&[None, Some(1), Some(3), Some(u32::MAX)]);
                let limits = QueueLimits { max_running, ..QueueLimits::default() };
                let queue = self.queue();
                ok(a.set_queue_limits(&queue, limits).await);
                ok(b.set_queue_limits(&queue, limits).await);
            }
        }
    }

    async fn claim(&mut self, a: &dyn Store, b: &dyn Store, at: &str) {
        let claim = ClaimId::from_uuid(Uuid::from_u128(self.random.next_u64().into()));
        let types = if self.chance(3) { vec!["ship".to_owned()] } else { NAMES.map(str::to_owned).to_vec() };
        let want = StepWant { session: self.pick(&self.sessions.clone()), queue: self.queue(), types, claim };
        let limit = self.pick(&[0, 1, 2, MANY, MANY, MANY]);
        let (x, y) = (ok(a.claim_steps(&want, limit).await), ok(b.claim_steps(&want, limit).await));
        assert_eq!(x.claims, y.claims, "{at}: {want:?}");
        assert_eq!(x.again.is_some(), y.again.is_some(), "{at}: {want:?} again");
        self.claims.extend(x.claims.iter().map(|c| ClaimKey { run: c.run, step: c.task.step, claim }));
    }

    /// One that was given out, or none.
    fn claim_key(&mut self) -> ClaimKey {
        if !self.claims.is_empty() && !self.chance(5) {
            return self.pick(&self.claims.clone());
        }
        let run = if self.runs.is_empty() {
            RunId::from_uuid(Uuid::nil())
        } else {
            self.pick(&self.runs.clone()).0
        };
        ClaimKey { run, step: OpId(1), claim: ClaimId::from_uuid(Uuid::nil()) }
    }

    fn beat(&mut self) -> Beat {
        let details = self.chance(2).then(|| self.payload());
        Beat { key: self.claim_key(), details }
    }

    pub(super) async fn compare_steps(&mut self, a: &dyn Store, b: &dyn Store, at: &str) {
        let untimed = |rows: Vec<crate::ClaimRow>| {
            let row = |r: crate::ClaimRow| (r.session, r.key, r.attempt, r.canceled);
            rows.into_iter().map(row).collect::<Vec<_>>()
        };
        let (x, y) = (a.claims_of(&self.sessions).await, b.claims_of(&self.sessions).await);
        assert_eq!(untimed(ok(x)), untimed(ok(y)), "{at}: claims_of");
        let own = |key: &AttemptKey| self.runs.iter().any(|(run, _)| *run == key.run);
        let (mut x, mut y) = (ok(a.lost_steps(MANY).await), ok(b.lost_steps(MANY).await));
        x.retain(own);
        y.retain(own);
        assert_eq!(x, y, "{at}: lost_steps");
        let filter = StepFilter {
            namespace: self.namespace.clone(),
            run: (!self.runs.is_empty() && self.chance(3)).then(|| self.pick(&self.runs.clone()).0),
            task_queue: self.chance(3).then(|| self.pick(&QUEUES).to_owned()),
            state: self.pick(&[None, Some(StepState::Queued), Some(StepState::Running)]),
        };
        let (x, y) = (a.list_steps(&filter, None, MANY).await, b.list_steps(&filter, None, MANY).await);
        let untimed = |rows: Vec<crate::StepRecord>| {
            let row = |r: crate::StepRecord| crate::StepRecord {
                claimed_at: r.claimed_at.map(|_| Timestamp::MAX),
                beat_at: r.beat_at.map(|_| Timestamp::MAX),
                ..r
            };
            rows.into_iter().map(row).collect::<Vec<_>>()
        };
        assert_eq!(untimed(ok(x)), untimed(ok(y)), "{at}: {filter:?}");
        let (x, y) = (a.queues(&self.namespace, "", MANY).await, b.queues(&self.namespace, "", MANY).await);
        assert_eq!(ok(x), ok(y), "{at}: queues");
    }
}
