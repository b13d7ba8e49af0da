//! Updates of runs under test: the code is asked as a server would have it asked, from the recorded history.

use everstep_core::{CommandBody, EventBody, Payload, RunId, UpdateOutcome};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::scenario::encoded;
use super::{Error, TestEnv};
use crate::ctx::Known;
use crate::machine::{Machine, handlers};
use crate::{Obstacle, payload};

impl TestEnv {
    /// Has the run's code do something, and lets time pass until it has answered.
    ///
    /// ```
    /// use everstep::testing::{Error, TestEnv};
    /// use everstep::{Ctx, Refused, WorkflowError};
    ///
    /// async fn cart(ctx: Ctx, enough: u32) -> Result<u32, WorkflowError> {
    ///     let total = ctx.state(0);
    ///     let agrees = |n: &u32| if *n > 0 { Ok(()) } else { Err(Refused::new("must be positive")) };
    ///     ctx.on_update("add", agrees, {
    ///         let total = total.clone();
    ///         move |_: Ctx, n: u32| {
    ///             total.update(|total| *total += n);
    ///             let sum = total.get();
    ///             async move { Ok(sum) }
    ///         }
    ///     });
    ///     ctx.wait(|| total.get() >= enough).await;
    ///     Ok(total.get())
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// let mut env = TestEnv::new().register("cart", cart);
    /// let run = env.start("cart", &5).await?;
    /// assert_eq!(env.update::<u32>(run, "add", &3).await?, 3);
    /// assert!(matches!(env.update::<u32>(run, "add", &0).await, Err(Error::UpdateRejected(_))));
    /// assert_eq!(env.update::<u32>(run, "add", &2).await?, 5);
    /// assert_eq!(env.result::<u32>(run).await?, 5);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::UpdateRejected`], [`Error::UpdateFailed`], [`Error::Refused`] when the run has ended, and
    /// [`Error::Ended`] when it ends before it has answered.
    pub async fn update<O: DeserializeOwned>(
        &mut self,
        run: RunId,
        name: &str,
        input: &(impl Serialize + ?Sized),
    ) -> Result<O, Error> {
        let id = self.start_update(run, name, input).await?;
        self.update_result(run, &id).await
    }

    /// Has the run's code agree to an update, and gives the update's id.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub async fn start_update(
        &mut self,
        run: RunId,
        name: &str,
        input: &(impl Serialize + ?Sized),
    ) -> Result<String, Error> {
        let run = self.latest(run);
        let input = encoded(input).map_err(Error::Payload)?;
        if !self.status(run)?.is_closed() {
            self.validate(run, name, &input)?;
        }
        let id = self.new_update_id();
        let seen = self.folded(run)?.seq();
        let (update_id, name) = (id.clone(), name.to_owned());
        self.ask(run, CommandBody::AcceptUpdate { update_id, name, input, seen }).await?;
        Ok(id)
    }

    /// Lets time pass until the run's code has answered an update.
    ///
    /// # Errors
    /// As [`update`](Self::update), and [`Error::Stuck`] when nothing is left that could lead to an answer.
    pub async fn update_result<O: DeserializeOwned>(&mut self, run: RunId, id: &str) -> Result<O, Error> {
        loop {
            let history = self.history(run)?;
            let outcome = history.events().iter().rev().find_map(|event| match &event.body {
                EventBody::UpdateCompleted { update_id, outcome, .. } if update_id == id => {
                    Some(outcome.clone())
                }
                _ => None,
            });
            match outcome {
                Some(UpdateOutcome::Completed(value)) => {
                    return payload::decode(&value).map_err(|e| Error::Payload(e.to_string()));
                }
                Some(UpdateOutcome::Failed(failure)) => return Err(Error::UpdateFailed(Box::new(failure))),
                None => self.until_update(run).await?,
            }
        }
    }

    /// Whether the code agrees, as the history stands.
    fn validate(&self, run: RunId, name: &str, input: &Payload) -> Result<(), Error> {
        let history = self.history(run)?;
        let events = history.events();
        let Some((first, EventBody::RunStarted(start))) = events.first().map(|e| (e, &e.body)) else {
            return Err(Error::UnknownRun(run));
        };
        let Some(workflow) = self.workflow(&start.workflow_type) else { return Err(Error::UnknownRun(run)) };
        let mut machine = Machine::new(run, start, first.at, workflow, Known::of(events));
        for event in events {
            machine.apply(event).map_err(|obstacle| match obstacle {
                Obstacle::Blocked(blocked) => Error::Blocked(format!("{blocked:?}")),
                Obstacle::Panicked(message) => Error::Blocked(message),
            })?;
        }
        let checked = machine.validator(name).and_then(|check| handlers::answer(&check, input.clone()));
        checked.map(|_| ()).map_err(|failure| Error::UpdateRejected(Box::new(failure)))
    }
}
