//! The environment that a test of a workflow works with.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use everstep_core::{CommandBody, Resolution, Run, RunId, RunStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::engine::Engine;
use super::faults::Faults;
use super::scenario::{Scenario, encoded};
use super::{Effects, Error, History, Mock, replayer};
use crate::machine::WorkflowFactory;
use crate::worker::workflow_factory;
use crate::{Ctx, Memo, SearchAttributes, WorkflowError, payload};

/// Workflows on an engine in memory with a clock of its own.
///
/// Time passes only where a test says so: in [`skip`](Self::skip), and in [`result`](Self::result), which goes
/// to whatever comes next until the run ends. Every other call lets happen what can happen at this instant.
///
/// ```
/// use everstep::testing::{Mock, TestEnv};
/// use everstep::{Ctx, StepError, WorkflowError};
/// use std::time::Duration;
///
/// async fn remind(ctx: Ctx, days: u32) -> Result<u32, WorkflowError> {
///     for day in 0..days {
///         ctx.sleep(Duration::from_secs(24 * 3600)).await;
///         ctx.step("send", move || async move { Ok::<_, StepError>(println!("day {day}")) }).await?;
///     }
///     Ok(days)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), everstep::testing::Error> {
/// let mut env = TestEnv::new().register("remind", remind).mock("send", Mock::returns(()));
/// let run = env.start("remind", &30).await?;
/// assert_eq!(env.result::<u32>(run).await?, 30);
/// assert_eq!(env.effects().of("send").len(), 30);
/// assert_eq!(env.elapsed(), Duration::from_secs(30 * 24 * 3600));
/// # Ok(())
/// # }
/// ```
pub struct TestEnv {
    pub(super) engine: Engine,
    began: i64,
}

impl Default for TestEnv {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for TestEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestEnv")
            .field("workflows", &self.engine.builds.types())
            .field("mocks", &self.engine.mocks)
            .field("now", &self.now())
            .finish_non_exhaustive()
    }
}

impl TestEnv {
    /// An environment without workflows, at 2026-01-01T00:00:00Z.
    #[must_use]
    pub fn new() -> Self {
        let engine = Engine::new();
        Self { began: engine.now(), engine }
    }

    /// Hosts a workflow under a name, as [`WorkerBuilder::register`](crate::WorkerBuilder::register) does.
    #[must_use]
    pub fn register<I, O, F, Fut>(mut self, name: impl Into<String>, workflow: F) -> Self
    where
        I: DeserializeOwned,
        O: Serialize,
        F: Fn(Ctx, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, WorkflowError>> + Send + 'static,
    {
        self.engine.builds.host(name.into(), workflow_factory(workflow), false);
        self
    }

    /// Lets `mock` stand in for the steps of this name.
    #[must_use]
    pub fn mock(mut self, step: impl Into<String>, mock: Mock) -> Self {
        self.set_mock(step, mock);
        self
    }

    /// Runs no step that has no mock: it fails with kind `NotMocked`, and is not tried again.
    #[must_use]
    pub fn mocked_only(mut self) -> Self {
        self.engine.mocked_only = true;
        self
    }

    /// Begins at another instant.
    #[must_use]
    pub fn starting_at(mut self, instant: DateTime<Utc>) -> Self {
        self.began = instant.timestamp_micros();
        self.engine.set_now(self.began);
        self
    }

    /// As [`mock`](Self::mock), from now on: a receiver that recovers, or breaks.
    pub fn set_mock(&mut self, step: impl Into<String>, mock: Mock) {
        self.engine.mocks.insert(step.into(), mock);
    }

    /// The virtual time.
    pub fn now(&self) -> DateTime<Utc> {
        super::effects::date(self.engine.time())
    }

    /// Virtual time that has passed since the environment was made.
    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.engine.now() - self.began).unwrap_or(0))
    }

    /// Starts a run.
    ///
    /// # Errors
    /// [`Error::UnknownWorkflow`], [`Error::Payload`].
    pub async fn start<I: Serialize + ?Sized>(&mut self, workflow: &str, input: &I) -> Result<RunId, Error> {
        let scenario = Scenario::new(workflow, input);
        self.play(scenario).await
    }

    /// Starts a run with more than its input: what its callers will do is done when its time comes.
    ///
    /// # Errors
    /// As [`start`](Self::start), and [`Error::Refused`] for ids that break the naming rule or are taken.
    pub async fn play(&mut self, scenario: Scenario) -> Result<RunId, Error> {
        let run = self.engine.start(scenario)?;
        self.settle().await?;
        Ok(run)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`Error::Refused`] when the run has ended or a name is wrong, [`Error::Payload`], [`Error::UnknownRun`].
    pub async fn signal<T>(&mut self, run: RunId, name: &str, value: &T) -> Result<(), Error>
    where
        T: Serialize + ?Sized,
    {
        let id = self.engine.new_id().to_string();
        self.signal_with_id(run, &id, name, value).await
    }

    /// As [`signal`](Self::signal), with an id of the sender's: a second signal with the same id is the same one.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub async fn signal_with_id<T>(
        &mut self,
        run: RunId,
        id: &str,
        name: &str,
        value: &T,
    ) -> Result<(), Error>
    where
        T: Serialize + ?Sized,
    {
        let input = encoded(value).map_err(Error::Payload)?;
        self.ask(run, CommandBody::Signal { name: name.to_owned(), signal_id: id.to_owned(), input }).await
    }

    /// Asks a run to stop in its own time.
    ///
    /// # Errors
    /// [`Error::Refused`] when the run has ended, [`Error::UnknownRun`].
    pub async fn cancel(&mut self, run: RunId, reason: &str) -> Result<(), Error> {
        self.ask(run, CommandBody::Cancel { reason: reason.to_owned() }).await
    }

    /// Stops a run now.
    ///
    /// # Errors
    /// As [`cancel`](Self::cancel).
    pub async fn terminate(&mut self, run: RunId, reason: &str) -> Result<(), Error> {
        self.ask(run, CommandBody::Terminate { reason: reason.to_owned() }).await
    }

    /// Says what became of the attempt of a step that is in doubt, as a person does for
    /// [`InDoubt::AskHuman`](crate::InDoubt::AskHuman).
    ///
    /// # Errors
    /// [`Error::Refused`] when no step of this name is in doubt, [`Error::UnknownRun`].
    pub async fn resolve_step(
        &mut self,
        run: RunId,
        step: &str,
        resolution: Resolution,
    ) -> Result<(), Error> {
        self.engine.resolve_step(run, step, resolution)?;
        self.settle().await
    }

    /// Lets so much time pass, and everything happen that comes within it.
    ///
    /// # Errors
    /// [`Error::Refused`] when what a workflow wants recorded breaks a limit.
    pub async fn skip(&mut self, time: Duration) -> Result<(), Error> {
        self.engine.advance(everstep_core::Duration::from(time).as_micros()).await
    }

    /// The workers die and come back: every open run is replayed. What steps of theirs had begun is not
    /// recorded, and is done again.
    ///
    /// # Errors
    /// As [`skip`](Self::skip).
    pub async fn crash(&mut self) -> Result<(), Error> {
        self.engine.crash();
        self.settle().await
    }

    /// Lets time pass until the run ends, and gives its result; of the last run, when its workflow continues as new or
    /// a failed run is tried again. Then replays the histories once: code that does something else the second time is
    /// found here, not by a crash in production.
    ///
    /// # Errors
    /// [`Error::Ended`] when it ended without a result, [`Error::Blocked`], [`Error::Stuck`], [`Error::Differs`],
    /// [`Error::Payload`] when the result is not a `T`.
    pub async fn result<T: DeserializeOwned>(&mut self, run: RunId) -> Result<T, Error> {
        self.finish(run).await?;
        self.check_replay(run)?;
        let run = self.folded(run)?;
        match run.failure() {
            Some(failure) => Err(Error::Ended { status: run.status(), failure: Box::new(failure.clone()) }),
            None => payload::decode(run.result()).map_err(|e| Error::Payload(e.to_string())),
        }
    }

    /// The run that goes on after this one, if it has continued as new or is tried again; else this one.
    pub fn latest(&self, run: RunId) -> RunId {
        self.engine.latest(run)
    }

    /// How the run stands.
    ///
    /// # Errors
    /// [`Error::UnknownRun`].
    pub fn status(&self, run: RunId) -> Result<RunStatus, Error> {
        self.engine.run(run).map(Run::status)
    }

    /// What the run says about itself now: its search attributes, and its memo.
    ///
    /// # Errors
    /// [`Error::UnknownRun`].
    pub fn notes(&self, run: RunId) -> Result<(SearchAttributes, Memo), Error> {
        let notes = self.engine.run(run)?.notes().clone();
        Ok((notes.attributes, notes.memo))
    }

    /// The run's events so far.
    ///
    /// # Errors
    /// [`Error::UnknownRun`].
    pub fn history(&self, run: RunId) -> Result<History, Error> {
        self.engine.history(run)
    }

    /// What was done to the outside world so far.
    pub fn effects(&self) -> Effects {
        self.engine.effects()
    }

    pub(super) fn workflow(&self, run: RunId) -> Result<&WorkflowFactory, Error> {
        self.engine.builds.code_of(self.engine.run(run)?).ok_or(Error::UnknownRun(run))
    }

    pub(super) fn new_update_id(&mut self) -> String {
        self.engine.new_id().to_string()
    }

    /// Lets the next thing happen while an update of an open run waits for its answer.
    pub(super) async fn until_update(&mut self, run: RunId) -> Result<(), Error> {
        let status = self.status(run)?;
        if status == RunStatus::Blocked {
            return Err(Error::Blocked(self.engine.run(run)?.row().blocked));
        }
        if status.is_closed() {
            let failure =
                everstep_core::Failure::new("UpdateAbandoned", "the run ended before it had answered");
            return Err(Error::Ended { status, failure: Box::new(failure) });
        }
        if self.engine.turn().await? {
            return Ok(());
        }
        Err(Error::Stuck { hint: "the update's handler waits: signal the run".to_owned() })
    }

    /// Decides a request of a caller's.
    pub(super) async fn ask(&mut self, run: RunId, body: CommandBody) -> Result<(), Error> {
        let command = self.engine.command(body);
        self.engine.request(self.engine.latest(run), &command)?;
        self.settle().await
    }

    pub(super) async fn settle(&mut self) -> Result<(), Error> {
        self.engine.advance(0).await
    }

    /// Lets time pass until the run ends.
    pub(super) async fn finish(&mut self, run: RunId) -> Result<(), Error> {
        // What was deployed a moment ago may take the run.
        self.settle().await?;
        loop {
            let run = self.latest(run);
            match self.status(run)? {
                RunStatus::Blocked => return Err(Error::Blocked(self.engine.run(run)?.row().blocked)),
                status if status.is_closed() => return Ok(()),
                _ => {}
            }
            if !self.engine.turn().await? {
                return Err(Error::Stuck { hint: self.what_helps(run)? });
            }
        }
    }

    /// What a test can do for a run that waits for ever.
    fn what_helps(&self, run: RunId) -> Result<String, Error> {
        if let Some(build) = self.waits_for_build(run)? {
            return Ok(format!("it waits for build '{build}', see deploy, continues and allow_build"));
        }
        let doubts = self.engine.run(run)?.doubts();
        Ok(match (doubts.first(), self.engine.unserved(run)) {
            (Some(doubt), _) => format!("step '{}' is in doubt, see resolve_step", doubt.name),
            (None, Some(step)) => {
                format!("queued step '{step}' waits: see register_step, mock and complete_step")
            }
            (None, None) => "signal or cancel it".to_owned(),
        })
    }

    /// Holds the history of the run, and of those that follow it, against the code.
    pub(super) fn check_replay(&self, run: RunId) -> Result<(), Error> {
        for run in self.engine.chain(run) {
            let history = self.engine.history(run)?;
            replayer::check(&history, self.workflow(run)?)?;
        }
        Ok(())
    }

    pub(super) fn plan_faults(&mut self, faults: Faults) {
        self.engine.faults = faults;
    }

    pub(super) fn faults(&self) -> &Faults {
        &self.engine.faults
    }

    /// The last run of the chain.
    pub(super) fn folded(&self, run: RunId) -> Result<&Run, Error> {
        self.engine.run(self.latest(run))
    }

    pub(super) fn begin(&mut self, scenario: Scenario) -> Result<RunId, Error> {
        self.engine.start(scenario)
    }
}
