//! A reminder each day for a month, in runs of a week: a workflow that goes on for long keeps its history short.
//!
//! A run sends the reminders of seven days and goes on in a new one, with what it knows as that one's input. To everybody
//! else it is one: it keeps its workflow id, a signal that comes in between is taken by the new run, and the result is
//! that of the last.

use std::sync::Arc;
use std::time::Duration;

use everstep::{Ctx, StepError, WorkflowError, select};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The name under which a worker registers the workflow.
pub const WORKFLOW: &str = "reminders";
/// The signal after which no more are sent.
pub const STOP: &str = "stop";
/// Reminders that one run sends.
pub const OF_A_RUN: u32 = 7;

/// Who is reminded, how often, and how far it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    to: String,
    count: u32,
    every: Duration,
    #[serde(default)]
    sent: u32,
    /// Microseconds since 1970; `None` in the first run until it has begun.
    #[serde(default)]
    began: Option<i64>,
}

impl Plan {
    /// So many reminders, the first of them after `every`.
    pub fn new(to: impl Into<String>, count: u32, every: Duration) -> Self {
        Self { to: to.into(), count, every, sent: 0, began: None }
    }

    /// How long it is until the next one. Counted from the beginning, so that the time that sending takes does not
    /// add up.
    fn pause(&mut self, now: i64) -> Duration {
        let began = *self.began.get_or_insert(now);
        let due = self.every * (self.sent + 1);
        due.saturating_sub(Duration::from_micros(u64::try_from(now - began).unwrap_or(0)))
    }
}

/// Delivers reminders.
pub trait Mail: Send + Sync + 'static {
    /// Sends reminder `number`, once for each key.
    fn send(
        &self,
        key: String,
        to: String,
        number: u32,
    ) -> impl Future<Output = Result<(), StepError>> + Send;
}

/// Sends the reminders of a plan, or those until [`STOP`]. Gives how many.
///
/// # Errors
/// When the signal's value is not null.
pub async fn remind<M: Mail>(ctx: Ctx, mail: Arc<M>, mut plan: Plan) -> Result<u32, WorkflowError> {
    for _ in 0..OF_A_RUN {
        if plan.sent >= plan.count {
            return Ok(plan.sent);
        }
        let pause = plan.pause(ctx.now().timestamp_micros());
        let stopped = select! {
            stop = ctx.signal::<()>(STOP) => stop.map(|()| true)?,
            _ = ctx.sleep(pause) => false,
        };
        if stopped {
            return Ok(plan.sent);
        }
        plan.sent += 1;
        let (key, to, number) = (ctx.idempotency_key(), plan.to.clone(), plan.sent);
        let mail = Arc::clone(&mail);
        ctx.step("send", move || {
            let (mail, key, to) = (Arc::clone(&mail), key.clone(), to.clone());
            async move { mail.send(key, to, number).await }
        })
        .await?;
    }
    Err(ctx.continue_as_new(&plan))
}
