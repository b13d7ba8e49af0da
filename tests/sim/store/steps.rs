//! Queued steps of the simulated store: the same faults as for every other question.

use async_trait::async_trait;
use everstep_core::{Duration, OpId, Payload, QueueKey, RunId, SessionId};
use everstep_engine::StepKey;
use everstep_engine::node::{StepsIn, StepsOut};
use everstep_store::{
    AttemptKey, Beat, BeatAnswer, ClaimKey, ClaimRow, DueSteps, Error, QueueLimits, QueueRecord, StepClaims,
    StepFilter, StepRecord, StepWant, Steps,
};

use super::SimStore;

impl SimStore {
    /// The answer to what a node asks of queued steps, if it is a question.
    pub(crate) fn answer_steps(&self, output: StepsOut) -> Option<StepsIn> {
        let claim = |key: &StepKey| ClaimKey { run: key.run_id, step: key.step, claim: key.claim };
        Some(match output {
            StepsOut::Claim { link, want, max } => {
                let claims = self.ask(|s| s.claim_steps_sync(&want, max));
                StepsIn::Claimed { link, queue: want.queue, max, claims }
            }
            StepsOut::LetGo { link, key, deferred } => {
                let done = self.ask(|s| match deferred {
                    true => s.defer_step_sync(claim(&key)),
                    false => s.return_step_sync(claim(&key)),
                });
                StepsIn::LetGo { link, key, deferred, done }
            }
            StepsOut::Beat { link, key, details, last } => {
                let beat = Beat { key: claim(&key), details };
                let answer = self.ask(|s| s.beat_steps_sync(&[beat])[0]);
                StepsIn::Beaten { link, key, last, answer }
            }
            StepsOut::Find { sessions, since } => {
                let rows = self.ask(|s| s.claims_of_sync(&sessions));
                StepsIn::Found { sessions, since, rows }
            }
            StepsOut::DueAt(_) | StepsOut::WaitingAt { .. } => return None,
        })
    }
}

#[async_trait]
impl Steps for SimStore {
    async fn claim_steps(&self, want: &StepWant, limit: usize) -> Result<StepClaims, Error> {
        self.ask(|store| store.claim_steps_sync(want, limit))
    }

    async fn return_step(&self, key: ClaimKey) -> Result<bool, Error> {
        self.ask(|store| store.return_step_sync(key))
    }

    async fn defer_step(&self, key: ClaimKey) -> Result<bool, Error> {
        self.ask(|store| store.defer_step_sync(key))
    }

    async fn beat_steps(&self, beats: &[Beat]) -> Result<Vec<BeatAnswer>, Error> {
        self.ask(|store| store.beat_steps_sync(beats))
    }

    async fn beat_by_token(
        &self,
        attempt: AttemptKey,
        details: Option<&Payload>,
    ) -> Result<BeatAnswer, Error> {
        self.inner.beat_by_token(attempt, details).await
    }

    async fn claims_of(&self, sessions: &[SessionId]) -> Result<Vec<ClaimRow>, Error> {
        self.ask(|store| store.claims_of_sync(sessions))
    }

    async fn lost_steps(&self, limit: usize) -> Result<Vec<AttemptKey>, Error> {
        self.ask(|store| store.lost_steps_sync(limit))
    }

    async fn due_steps(&self, limit: usize, claim: Duration) -> Result<DueSteps, Error> {
        self.ask(|store| store.due_steps_sync(limit, claim))
    }

    async fn set_queue_limits(&self, queue: &QueueKey, limits: QueueLimits) -> Result<(), Error> {
        self.inner.set_queue_limits(queue, limits).await
    }

    async fn queue(&self, queue: &QueueKey) -> Result<QueueRecord, Error> {
        self.inner.queue(queue).await
    }

    async fn queues(&self, namespace: &str, after: &str, limit: usize) -> Result<Vec<QueueRecord>, Error> {
        self.inner.queues(namespace, after, limit).await
    }

    async fn list_steps(
        &self,
        filter: &StepFilter,
        after: Option<(RunId, OpId)>,
        limit: usize,
    ) -> Result<Vec<StepRecord>, Error> {
        self.inner.list_steps(filter, after, limit).await
    }

    async fn deployment_secret(&self) -> Result<[u8; 32], Error> {
        self.inner.deployment_secret().await
    }
}
