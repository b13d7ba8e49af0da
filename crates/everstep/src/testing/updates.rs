//! Updates and queries of runs under test: the code is asked as a server would have it asked, from the recorded
//! history.

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
        let id = self.new_update_id();
        self.start_update_with_id(run, &id, name, input).await?;
        Ok(id)
    }

    /// As [`start_update`](Self::start_update), with an id of the caller's: a second update with the same id is the same
    /// one.
    ///
    /// # Errors
    /// As [`update`](Self::update), and [`Error::Refused`] when the id was used with another input.
    pub async fn start_update_with_id(
        &mut self,
        run: RunId,
        id: &str,
        name: &str,
        input: &(impl Serialize + ?Sized),
    ) -> Result<(), Error> {
        let run = self.latest(run);
        let input = encoded(input).map_err(Error::Payload)?;
        let known = self.folded(run)?.update(id).is_some();
        if !known && !self.status(run)?.is_closed() {
            self.validate(run, name, &input)?;
        }
        let seen = self.folded(run)?.seq();
        let (update_id, name) = (id.to_owned(), name.to_owned());
        self.ask(run, CommandBody::AcceptUpdate { update_id, name, input, seen }).await
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

    /// Asks the run's code for a value, as it stands after all that is recorded. Time does not pass, and nothing is
    /// recorded; a closed run answers too.
    ///
    /// ```
    /// use everstep::testing::{Error, TestEnv};
    /// use everstep::{Ctx, WorkflowError};
    ///
    /// async fn trip(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
    ///     let place = ctx.state("home".to_owned());
    ///     ctx.on_query("place", {
    ///         let place = place.clone();
    ///         move |(): ()| Ok(place.get())
    ///     });
    ///     place.set(ctx.signal("at").await?);
    ///     ctx.signal::<()>("back").await?;
    ///     Ok(())
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// let mut env = TestEnv::new().register("trip", trip);
    /// let run = env.start("trip", &()).await?;
    /// assert_eq!(env.query::<String>(run, "place", &())?, "home");
    /// env.signal(run, "at", "sea").await?;
    /// assert_eq!(env.query::<String>(run, "place", &())?, "sea");
    /// assert!(matches!(env.query::<String>(run, "weather", &()), Err(Error::QueryFailed(_))));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::QueryFailed`], [`Error::Blocked`], [`Error::Payload`] when the answer is not an `O`,
    /// [`Error::UnknownRun`].
    pub fn query<O: DeserializeOwned>(
        &self,
        run: RunId,
        name: &str,
        input: &(impl Serialize + ?Sized),
    ) -> Result<O, Error> {
        let input = encoded(input).map_err(Error::Payload)?;
        let machine = self.replayed(self.latest(run))?;
        let answer = machine.query(name).and_then(|handler| handlers::answer(&handler, input));
        let value = answer.map_err(|failure| Error::QueryFailed(Box::new(failure)))?;
        payload::decode(&value).map_err(|e| Error::Payload(e.to_string()))
    }

    /// Whether the code agrees, as the history stands.
    fn validate(&self, run: RunId, name: &str, input: &Payload) -> Result<(), Error> {
        let machine = self.replayed(run)?;
        let checked = machine.validator(name).and_then(|check| handlers::answer(&check, input.clone()));
        checked.map(|_| ()).map_err(|failure| Error::UpdateRejected(Box::new(failure)))
    }

    /// The code, at the end of the history as it stands.
    fn replayed(&self, run: RunId) -> Result<Machine, Error> {
        let history = self.history(run)?;
        let events = history.events();
        let Some((first, EventBody::RunStarted(start))) = events.first().map(|e| (e, &e.body)) else {
            return Err(Error::UnknownRun(run));
        };
        let mut machine = Machine::new(run, start, first.at, self.workflow(run)?, Known::of(events));
        for event in events {
            machine.apply(event).map_err(|obstacle| match obstacle {
                Obstacle::Blocked(blocked) => Error::Blocked(format!("{blocked:?}")),
                Obstacle::Panicked(message) => Error::Blocked(message),
            })?;
        }
        Ok(machine)
    }
}
