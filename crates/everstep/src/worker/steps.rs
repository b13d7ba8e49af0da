//! Queued steps: the attempts that this worker runs, and the ends that nobody has acknowledged yet.
//!
//! An end is kept, and said again on each new stream, until the server says what became of it. Nothing here outlives
//! the lease: what runs past it may run elsewhere already.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use everstep_core::{Failure, OpId, Payload, RunId, TraceContext};
use everstep_proto::api::{self, step_result::End, worker_message::Message};
use everstep_proto::{history, wire};
use opentelemetry::trace::FutureExt;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Settings;
use super::lease::Lease;
use super::outbox::Outbox;
use super::run::guarded;
use crate::ctx::{self, STEP_INFO};
use crate::step_ctx::{CANCELED, StepCtx, StepFn};
use crate::{StepInfo, trace};

/// What Hello calls it.
pub(super) const CAPABILITY: &str = "steps";
/// Longest time between two heartbeats that have something new to say.
const BEAT_MAX: Duration = Duration::from_secs(10);
/// Shortest, whatever the step asks for.
const BEAT_MIN: Duration = Duration::from_millis(10);

/// Names an attempt: its run and step. A worker has one attempt of a step at a time.
type Place = (RunId, u32);

/// The attempts of queued steps of one worker.
pub(super) struct Steps {
    settings: Arc<Settings>,
    outbox: Arc<Outbox>,
    lease: Arc<Lease>,
    held: BTreeMap<Place, Held>,
    to_here: mpsc::UnboundedSender<Ended>,
    ended: mpsc::UnboundedReceiver<Ended>,
    draining: bool,
}

/// An attempt that runs, or whose end is not acknowledged.
struct Held {
    attempt: u32,
    claim: String,
    ctx: StepCtx,
    running: AbortHandle,
    /// How it ended.
    result: Option<api::StepResult>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// An attempt has come to its end.
pub(super) struct Ended {
    place: Place,
    claim: String,
    elapsed: Duration,
    end: End,
}

impl Steps {
    pub(super) fn new(settings: Arc<Settings>, outbox: Arc<Outbox>, lease: Arc<Lease>) -> Self {
        let (to_here, ended) = mpsc::unbounded_channel();
        Self { settings, outbox, lease, held: BTreeMap::new(), to_here, ended, draining: false }
    }

    /// The server gives an attempt to this worker.
    pub(super) fn take(&mut self, task: api::StepTask) {
        let Ok(run) = task.run_id.parse::<RunId>() else { return };
        let place = (run, task.step_id);
        if self.held.get(&place).is_some_and(|held| held.claim == task.claim_id) {
            return;
        }
        let step = self.settings.steps.get(&task.name).cloned();
        let may_start = self.lease.may_start() && !self.draining;
        let (Some(step), true) = (step, may_start) else {
            // Not begun, so another worker may run the same attempt.
            let returned = End::Returned(api::Returned {});
            let result = result_of(place, (task.attempt, task.claim_id), Duration::ZERO, returned);
            return self.outbox.send(Message::StepResult(result));
        };
        let held = self.begin(place, step, task);
        // What ran there before belongs to an attempt that is over.
        self.held.insert(place, held);
    }

    fn begin(&self, place: Place, step: StepFn, task: api::StepTask) -> Held {
        let api::StepTask { name, attempt, claim_id, input, last_details, task_token, .. } = task;
        let (run, id) = (place.0, OpId(place.1));
        let duration = |wire| wire::decode_duration("duration", wire).ok().map(|d| d.to_std());
        let history::TraceContext { traceparent, tracestate } = task.trace.unwrap_or_default();
        let parent = everstep_proto::trace::remote(&TraceContext { traceparent, tracestate });
        let parent = parent.unwrap_or_default();
        let info = StepInfo {
            run_id: run,
            name: name.clone(),
            step_id: id.0,
            attempt,
            epoch: 0,
            idempotency_key: ctx::key(run, id),
        };
        let ctx = StepCtx::new(info.clone(), task_token, wire::decode_payload(last_details));
        let context = trace::begin_queued(&parent, run, &task.workflow_type, (id, &name, attempt));
        let running = Running {
            place,
            attempt,
            claim: claim_id.clone(),
            ctx: ctx.clone(),
            outbox: Arc::clone(&self.outbox),
            beat: beat_interval(task.heartbeat.and_then(duration)),
        };
        let (lease, to_here) = (Arc::clone(&self.lease), self.to_here.clone());
        let limit = task.start_to_close.and_then(duration);
        let effect = step(ctx.clone(), wire::decode_payload(input));
        let task = tokio::spawn(async move {
            let began = Instant::now();
            let effect = guarded(STEP_INFO.scope(info, effect).with_context(context.clone()), None);
            let result = tokio::select! {
                biased;
                () = lease.over() => None,
                () = over(limit) => None,
                result = running.beating(effect) => Some(result),
            };
            let elapsed = began.elapsed();
            let failure = result.as_ref().and_then(|r| r.as_ref().err()).map(|f| f.kind.as_str());
            trace::end_attempt(&context, elapsed, failure);
            // What has run out of time has no end: the server knows best what that means for the step.
            if let Some(result) = result {
                let (place, claim, end) = (running.place, running.claim.clone(), running.end(result));
                let _ = to_here.send(Ended { place, claim, elapsed, end });
            }
        });
        Held { attempt, claim: claim_id, ctx, running: task.abort_handle(), result: None }
    }

    /// Waits for the next end. Cancel safe.
    pub(super) async fn next_end(&mut self) -> Ended {
        match self.ended.recv().await {
            Some(ended) => ended,
            // A sender is kept here.
            None => std::future::pending().await,
        }
    }

    /// An attempt has ended: says so, now and on each new stream.
    pub(super) fn ended(&mut self, ended: Ended) {
        let Ended { place, claim, elapsed, end } = ended;
        let Some(held) = self.held.get_mut(&place).filter(|held| held.claim == claim) else { return };
        let mut result = result_of(place, (held.attempt, claim), elapsed, end);
        result.details = held.ctx.details().as_ref().map(wire::encode_payload);
        held.result = Some(result.clone());
        self.outbox.send(Message::StepResult(result));
    }

    /// What was said about an attempt is settled.
    pub(super) fn acked(&mut self, ack: &api::StepResultAck) {
        let api::StepResultAck { run_id, step_id, attempt, reason } = ack;
        if !reason.is_empty() {
            tracing::warn!(run_id, step_id, attempt, reason, "the end of an attempt does not count");
        }
        if let Ok(run) = run_id.parse::<RunId>()
            && self.held.get(&(run, *step_id)).is_some_and(|held| held.attempt == *attempt)
        {
            self.held.remove(&(run, *step_id));
        }
    }

    /// Nobody wants the attempt any more.
    pub(super) fn cancel(&mut self, cancel: &api::StepCancel) {
        let Ok(run) = cancel.run_id.parse::<RunId>() else { return };
        let place = (run, cancel.step_id);
        if cancel.reason == "UNHEARD" {
            return self.asked(place, cancel);
        }
        let Some(held) = self.held.get(&place).filter(|held| held.attempt == cancel.attempt) else { return };
        if cancel.reason == "CANCELED" {
            held.ctx.cancel();
        } else {
            tracing::info!(
                run_id = cancel.run_id,
                step_id = cancel.step_id,
                reason = cancel.reason,
                "attempt given up"
            );
            self.held.remove(&place);
        }
    }

    /// The server does not know what has become of an attempt. One that is not here was never heard of, and one that
    /// has ended may have said so in vain.
    fn asked(&self, place: Place, cancel: &api::StepCancel) {
        let said = match self.held.get(&place).filter(|held| held.claim == cancel.claim_id) {
            Some(held) => held.result.clone(),
            None => {
                let claim = (cancel.attempt, cancel.claim_id.clone());
                let returned = End::Returned(api::Returned {});
                Some(result_of(place, claim, Duration::ZERO, returned))
            }
        };
        if let Some(result) = said {
            self.outbox.send(Message::StepResult(result));
        }
    }

    /// What this worker holds, for a new stream.
    pub(super) fn held(&self) -> Vec<api::HeldStep> {
        let held = self.held.iter().map(|(place, held)| api::HeldStep {
            run_id: place.0.to_string(),
            step_id: place.1,
            attempt: held.attempt,
            claim_id: held.claim.clone(),
        });
        held.collect()
    }

    /// A new stream of the same session: whatever may have been lost is said again.
    pub(super) fn resend(&self) {
        for (place, held) in &self.held {
            match &held.result {
                Some(result) => self.outbox.send(Message::StepResult(result.clone())),
                None => {
                    let details = held.ctx.details();
                    self.outbox.send(beat(*place, (held.attempt, &held.claim), details));
                }
            }
        }
    }

    /// Nothing that this worker holds is its own any more.
    pub(super) fn forget(&mut self) {
        self.held.clear();
    }

    /// No new attempts from here on.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// Every end is acknowledged, and nothing runs.
    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// The grace is over. What runs is aborted without an end: its session ends, and the step goes on as after any
    /// other loss, from where it last said it was.
    pub(super) fn give_up(&mut self) {
        for (place, held) in &self.held {
            if let (None, Some(details)) = (&held.result, held.ctx.details()) {
                self.outbox.send(beat(*place, (held.attempt, &held.claim), Some(details)));
            }
        }
        self.held.clear();
    }
}

/// What an attempt needs beside its code.
struct Running {
    place: Place,
    attempt: u32,
    claim: String,
    ctx: StepCtx,
    outbox: Arc<Outbox>,
    beat: Duration,
}

impl Running {
    /// Runs the code, and passes on what it says about how far it is: the newest, and not too often.
    async fn beating(
        &self,
        effect: impl Future<Output = Result<Payload, Failure>>,
    ) -> Result<Payload, Failure> {
        let mut effect = std::pin::pin!(effect);
        let mut next = Instant::now();
        loop {
            tokio::select! {
                biased;
                result = effect.as_mut() => return result,
                () = self.ctx.said() => {}
            }
            tokio::select! {
                biased;
                result = effect.as_mut() => return result,
                () = tokio::time::sleep_until(next) => {}
            }
            self.outbox.send(beat(self.place, (self.attempt, &self.claim), self.ctx.details()));
            next = Instant::now() + self.beat;
        }
    }

    fn end(&self, result: Result<Payload, Failure>) -> End {
        match result {
            Ok(result) => End::Completed(wire::encode_payload(&result)),
            Err(_) if self.ctx.is_deferred() => End::Deferred(api::Deferred {}),
            Err(failure) if failure.kind == CANCELED && self.ctx.is_canceled() => {
                End::Canceled(failure.message)
            }
            Err(failure) => End::Failed(wire::encode_failure(&failure)),
        }
    }
}

/// Thrice within the time that an attempt may be silent: one of them may be late or lost.
fn beat_interval(heartbeat: Option<Duration>) -> Duration {
    heartbeat.map_or(BEAT_MAX, |limit| (limit / 3).clamp(BEAT_MIN, BEAT_MAX))
}

fn beat(place: Place, (attempt, claim): (u32, &str), details: Option<Payload>) -> Message {
    Message::StepBeat(api::StepBeat {
        run_id: place.0.to_string(),
        step_id: place.1,
        attempt,
        claim_id: claim.to_owned(),
        details: details.as_ref().map(wire::encode_payload),
    })
}

fn result_of(
    place: Place,
    (attempt, claim_id): (u32, String),
    elapsed: Duration,
    end: End,
) -> api::StepResult {
    api::StepResult {
        run_id: place.0.to_string(),
        step_id: place.1,
        attempt,
        claim_id,
        elapsed: Some(wire::encode_duration(elapsed.into())),
        end: Some(end),
        details: None,
    }
}

async fn over(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}
