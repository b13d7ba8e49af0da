//! A step that takes hours and says how far it is: when its worker is lost, the next attempt goes on from there.
//!
//! The workflow asks for a *queued* step: workers that have it take it from the task queue [`QUEUE`], on other hosts or
//! from other programs. The run costs nothing meanwhile.

use std::sync::Arc;
use std::time::Duration;

use everstep::{Ctx, StepCtx, StepError, StepType, WorkflowError};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The name under which a worker registers the workflow.
pub const WORKFLOW: &str = "film";
/// The queue of the workers that can transcode.
pub const QUEUE: &str = "video";
/// Longest silence of an attempt: it counts as lost after it.
pub const SILENCE: Duration = Duration::from_secs(3);

/// What is to be transcoded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Film {
    /// Its name.
    pub name: String,
    /// Parts that it is cut into.
    pub parts: u32,
}

/// The step: gives how many parts were made.
#[derive(Debug)]
pub struct Transcode;

impl StepType for Transcode {
    const NAME: &'static str = "transcode";
    type Input = Film;
    type Output = u32;
}

/// Makes one part of a film after the other.
pub trait Encoder: Send + Sync + 'static {
    /// Makes a part, or makes it again.
    fn make(&self, film: &Film, part: u32) -> impl Future<Output = Result<(), StepError>> + Send;
}

/// Has a film transcoded.
///
/// # Errors
/// When the step fails for good.
pub async fn publish(ctx: Ctx, film: Film) -> Result<u32, WorkflowError> {
    let made = ctx
        .run::<Transcode>(film)
        .task_queue(QUEUE)
        .heartbeat(SILENCE)
        .start_to_close(Duration::from_secs(8 * 3_600))
        .await?;
    Ok(made)
}

/// What a worker of [`QUEUE`] registers: goes on behind the last part that an attempt before this one has told of.
///
/// # Errors
/// The encoder's, and when nobody wants the film any more.
pub async fn transcode<E: Encoder>(step: StepCtx, encoder: Arc<E>, film: Film) -> Result<u32, StepError> {
    let first = step.last_heartbeat::<u32>().unwrap_or(0);
    for part in first..film.parts {
        if step.is_canceled() {
            return Err(step.stopped(format!("{part} parts are made")));
        }
        encoder.make(&film, part).await?;
        step.heartbeat(&(part + 1));
    }
    Ok(film.parts)
}
