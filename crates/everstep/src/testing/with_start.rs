//! Starts that bring something along: for the run that starts, or for the one that is there.

use everstep_core::{FirstMessage, RunId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::scenario::encoded;
use super::{Error, Scenario, TestEnv};

impl TestEnv {
    /// Sends a signal to the open run of the scenario's workflow id, or starts one that has it from its first moment. The
    /// scenario's request id is the signal's too: a repeat is recognised.
    ///
    /// ```
    /// use everstep::testing::{Error, Scenario, TestEnv};
    /// use everstep::{Ctx, WorkflowError};
    ///
    /// async fn cart(ctx: Ctx, wanted: usize) -> Result<Vec<String>, WorkflowError> {
    ///     let mut items = Vec::new();
    ///     while items.len() < wanted {
    ///         items.push(ctx.signal("add").await?);
    ///     }
    ///     Ok(items)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// let mut env = TestEnv::new().register("cart", cart);
    /// let cart = Scenario::new("cart", &2).workflow_id("cart/7");
    /// let run = env.signal_with_start(cart.clone(), "add", "apple").await?;
    /// assert_eq!(env.signal_with_start(cart, "add", "pear").await?, run);
    /// assert_eq!(env.result::<Vec<String>>(run).await?, ["apple", "pear"]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] without a workflow id and when the request id was used with another signal, and as
    /// [`play`](Self::play).
    pub async fn signal_with_start<T>(
        &mut self,
        mut scenario: Scenario,
        name: &str,
        value: &T,
    ) -> Result<RunId, Error>
    where
        T: Serialize + ?Sized,
    {
        let signal_id = self.request_id(&mut scenario);
        let input = encoded(value).map_err(Error::Payload)?;
        let first = FirstMessage::Signal { name: name.to_owned(), signal_id, input };
        let run = self.engine.start_with(scenario, Some(first))?;
        self.settle().await?;
        Ok(run)
    }

    /// Has the code of the open run of the scenario's workflow id do something, after starting a run if there is none, and
    /// lets time pass until it has answered. The scenario's request id is the update's too.
    ///
    /// # Errors
    /// As [`signal_with_start`](Self::signal_with_start) and [`update`](Self::update).
    pub async fn update_with_start<O: DeserializeOwned>(
        &mut self,
        scenario: Scenario,
        name: &str,
        input: &(impl Serialize + ?Sized),
    ) -> Result<O, Error> {
        let (run, id) = self.start_with_update(scenario, name, input).await?;
        self.update_result(run, &id).await
    }

    /// As [`update_with_start`](Self::update_with_start), until the code has agreed: gives the run, and the update's id.
    ///
    /// # Errors
    /// As [`update_with_start`](Self::update_with_start).
    pub async fn start_with_update(
        &mut self,
        mut scenario: Scenario,
        name: &str,
        input: &(impl Serialize + ?Sized),
    ) -> Result<(RunId, String), Error> {
        let update_id = self.request_id(&mut scenario);
        let first = FirstMessage::Update { update_id: update_id.clone() };
        let run = self.engine.start_with(scenario, Some(first))?;
        self.settle().await?;
        self.start_update_with_id(run, &update_id, name, input).await?;
        Ok((run, update_id))
    }

    /// The request id of a start, which is made up if nobody has said one.
    fn request_id(&mut self, scenario: &mut Scenario) -> String {
        let id = scenario.request_id.take().unwrap_or_else(|| self.new_update_id());
        scenario.request_id = Some(id.clone());
        id
    }
}
