//! Builds of workers under test: code that is pinned, deployed beside other code, and retired.

use everstep_core::RunId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Error, TestEnv};
use crate::worker::workflow_factory;
use crate::{Ctx, WorkflowError};

impl TestEnv {
    /// Names the build whose code is registered, as [`WorkerBuilder::build_id`](crate::WorkerBuilder::build_id) does.
    /// Default `test`.
    #[must_use]
    pub fn build_id(mut self, build_id: impl Into<String>) -> Self {
        self.engine.builds.rename(build_id.into());
        self
    }

    /// Hosts a workflow whose runs stay with the build that has them, as
    /// [`WorkerBuilder::register_pinned`](crate::WorkerBuilder::register_pinned) does.
    ///
    /// ```
    /// use everstep::testing::TestEnv;
    /// use everstep::{Ctx, WorkflowError};
    ///
    /// async fn before(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    ///     ctx.signal::<()>("go").await?;
    ///     Ok(1)
    /// }
    ///
    /// async fn after(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    ///     ctx.signal::<()>("go").await?;
    ///     Ok(2)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), everstep::testing::Error> {
    /// let mut env = TestEnv::new().build_id("v1").register_pinned("order", before);
    /// let old = env.start("order", &()).await?;
    /// let mut env = env.deploy("v2").register_pinned("order", after);
    /// let new = env.start("order", &()).await?;
    /// for run in [old, new] {
    ///     env.signal(run, "go", &()).await?;
    /// }
    /// assert_eq!((env.result::<u32>(old).await?, env.result::<u32>(new).await?), (1, 2));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn register_pinned<I, O, F, Fut>(mut self, name: impl Into<String>, workflow: F) -> Self
    where
        I: DeserializeOwned,
        O: Serialize,
        F: Fn(Ctx, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, WorkflowError>> + Send + 'static,
    {
        self.engine.builds.host(name.into(), workflow_factory(workflow), true);
        self
    }

    /// Workers of another build come, beside those that are there: what is registered from now on is its code. Of the
    /// builds that may have a run the newest takes it; under [`simulate`](super::simulate) the seed says which. A build
    /// that was [retired](Self::retire) comes back with its code.
    #[must_use]
    pub fn deploy(mut self, build_id: impl Into<String>) -> Self {
        self.engine.deploy(build_id.into());
        self
    }

    /// The newest build goes on with the pinned runs of another one, as
    /// [`WorkerBuilder::continues`](crate::WorkerBuilder::continues) says.
    #[must_use]
    pub fn continues(mut self, build_id: impl Into<String>) -> Self {
        self.engine.builds.continues(build_id.into());
        self
    }

    /// The workers of a build stop at once, as in [`crash`](Self::crash). Its pinned runs wait.
    ///
    /// # Errors
    /// [`Error::UnknownBuild`].
    pub async fn retire(&mut self, build_id: &str) -> Result<(), Error> {
        self.engine.retire(build_id)?;
        self.settle().await
    }

    /// Lets a build go on with the pinned runs of another one, as `everstep build allow` does.
    ///
    /// # Errors
    /// [`Error::UnknownBuild`].
    pub async fn allow_build(&mut self, build_id: &str, continues: &str) -> Result<(), Error> {
        self.engine.allow_build(build_id, continues)?;
        self.settle().await
    }

    /// The build that the run waits for, because no build that is there may have it; `*` for any that has its workflow.
    /// `None` also for a run that needs no worker now.
    ///
    /// # Errors
    /// [`Error::UnknownRun`].
    pub fn waits_for_build(&self, run: RunId) -> Result<Option<String>, Error> {
        self.engine.waits_for_build(self.latest(run))
    }
}
