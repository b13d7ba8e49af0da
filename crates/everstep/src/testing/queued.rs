//! Queued steps in the environment of a test.

use everstep_core::{RunId, StepEnd};
use serde::Serialize;

use super::scenario::encoded;
use super::{Error, TestEnv};
use crate::worker::step_fn;
use crate::{StepCtx, StepError, StepType};

impl TestEnv {
    /// Has a worker for a queued step, as [`WorkerBuilder::register_step`](crate::WorkerBuilder::register_step) does. A
    /// [`mock`](Self::mock) of its name stands in for it, and for one that is not registered.
    ///
    /// An attempt runs as a whole at one instant: its heartbeats are kept for the next attempt, and none is missed but by
    /// [`Mock::silent_first`](super::Mock::silent_first). Code that waits for [`StepCtx::canceled`] would wait for ever; a step
    /// that is canceled before a worker takes it ends.
    ///
    /// ```
    /// use everstep::testing::TestEnv;
    /// use everstep::{Ctx, StepCtx, StepError, StepType, WorkflowError};
    ///
    /// struct Double;
    ///
    /// impl StepType for Double {
    ///     const NAME: &'static str = "double";
    ///     type Input = u32;
    ///     type Output = u32;
    /// }
    ///
    /// async fn double(_: StepCtx, n: u32) -> Result<u32, StepError> {
    ///     Ok(2 * n)
    /// }
    ///
    /// async fn twice(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
    ///     let n = ctx.run::<Double>(n).await?;
    ///     Ok(ctx.run::<Double>(n).await?)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), everstep::testing::Error> {
    /// let mut env = TestEnv::new().register("twice", twice).register_step::<Double, _, _>(double);
    /// let run = env.start("twice", &4).await?;
    /// assert_eq!(env.result::<u32>(run).await?, 16);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn register_step<S, F, Fut>(mut self, step: F) -> Self
    where
        S: StepType,
        F: Fn(StepCtx, S::Input) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S::Output, StepError>> + Send + 'static,
    {
        self.engine.queued.steps.insert(S::NAME.to_owned(), step_fn::<S, F, Fut>(step));
        self
    }

    /// Ends the present attempt of the run's queued step of this name well, as whoever has its
    /// [`task_token`](StepCtx::task_token) does.
    ///
    /// # Errors
    /// [`Error::Refused`] when the run has no such step, [`Error::Payload`], [`Error::UnknownRun`].
    pub async fn complete_step<T: Serialize + ?Sized>(
        &mut self,
        run: RunId,
        step: &str,
        result: &T,
    ) -> Result<(), Error> {
        let result = encoded(result).map_err(Error::Payload)?;
        self.engine.end_queued(run, step, StepEnd::Completed(result))?;
        self.settle().await
    }

    /// Says how far the present attempt of the run's queued step of this name is, and that it lives, as whoever has its
    /// [`task_token`](StepCtx::task_token) does: for an attempt that said [`complete_later`](StepCtx::complete_later). True
    /// when nobody wants it any more.
    ///
    /// # Errors
    /// As [`complete_step`](Self::complete_step), also when no such attempt is under way.
    pub async fn heartbeat_step<D: Serialize + ?Sized>(
        &mut self,
        run: RunId,
        step: &str,
        details: &D,
    ) -> Result<bool, Error> {
        let details = encoded(details).map_err(Error::Payload)?;
        let stop = self.engine.beat_queued(run, step, details)?;
        self.settle().await?;
        Ok(stop)
    }

    /// As [`complete_step`](Self::complete_step), as failed.
    ///
    /// # Errors
    /// As [`complete_step`](Self::complete_step).
    pub async fn fail_step(&mut self, run: RunId, step: &str, error: StepError) -> Result<(), Error> {
        self.engine.end_queued(run, step, StepEnd::Failed(error.0))?;
        self.settle().await
    }
}
