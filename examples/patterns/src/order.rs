//! An order: charge, reserve, ship. When the rest cannot be done, what was done is undone, last first.
//!
//! Each of the three can fail, be slow, or be *in doubt*: its worker is lost in the middle, and nobody here can say
//! whether it happened. What follows then depends on whom it was asked of:
//!
//! | Step | Knows a repeat? | Can be asked? | In doubt |
//! |---|---|---|---|
//! | charge | by its key | yes | the bank is asked ([`InDoubt::verify`]) |
//! | reserve | no | no | it counts as failed ([`InDoubt::Fail`]), and whatever is held for the order is let go of |
//! | ship | no | by telephone | a person says what became of it ([`InDoubt::AskHuman`], `everstep step resolve`) |
//!
//! An undo is an ordinary step, tried until it succeeds, and also run where nobody knows whether there is something to
//! undo. So undos have to be harmless when there is nothing: they name the order, not what was made for it.

use std::sync::Arc;
use std::time::Duration;

use everstep::{Ctx, InDoubt, RetryPolicy, Saga, Step, StepError, StepFailed, WorkflowError, saga};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The name under which a worker registers the workflow.
pub const WORKFLOW: &str = "order-saga";
/// How long an attempt of the bank or the warehouse may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long the carrier may take.
pub const CARRIER_PATIENCE: Duration = Duration::from_secs(3_600);

/// What was ordered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The order's id.
    pub id: String,
    /// What.
    pub item: String,
    /// What it costs, in cents.
    pub cents: u64,
}

/// An order that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The bank's id of the charge.
    pub charge: String,
    /// The carrier's id of the parcel.
    pub parcel: String,
}

/// Those who do the work.
pub trait Shop: Send + Sync + 'static {
    /// Takes the money, once for each key. Gives the charge's id.
    fn charge(
        self: Arc<Self>,
        key: String,
        cents: u64,
    ) -> impl Future<Output = Result<String, StepError>> + Send;
    /// The charge that was made with this key.
    fn find_charge(
        self: Arc<Self>,
        key: String,
    ) -> impl Future<Output = Result<Option<String>, StepError>> + Send;
    /// Gives back what was taken with this key, if anything was.
    fn refund(self: Arc<Self>, key: String) -> impl Future<Output = Result<(), StepError>> + Send;
    /// Holds the item back for the order. A second call holds a second one back.
    fn reserve(self: Arc<Self>, order: Order) -> impl Future<Output = Result<(), StepError>> + Send;
    /// Lets go of all that is held for the order.
    fn release(self: Arc<Self>, order: Order) -> impl Future<Output = Result<(), StepError>> + Send;
    /// Hands the parcel to the carrier, and gives its id. A second call sends a second parcel.
    fn ship(self: Arc<Self>, order: Order) -> impl Future<Output = Result<String, StepError>> + Send;
    /// Calls back every parcel of the order.
    fn recall(self: Arc<Self>, order: Order) -> impl Future<Output = Result<(), StepError>> + Send;
}

/// Carries out an order, or leaves nothing of it.
///
/// # Errors
/// Why it could not be carried out.
pub async fn carry_out<S: Shop>(ctx: Ctx, shop: Arc<S>, order: Order) -> Result<Receipt, WorkflowError> {
    let code = ctx.clone();
    let done = saga(&ctx, |saga| async move {
        let partners = Partners { ctx: code, shop, saga };
        let charge = partners.charge(order.cents).await?;
        partners.reserve(&order).await?;
        let parcel = partners.ship(&order).await?;
        Ok(Receipt { charge, parcel })
    });
    Ok(done.await?)
}

struct Partners<S> {
    ctx: Ctx,
    shop: Arc<S>,
    saga: Saga,
}

impl<S: Shop> Partners<S> {
    async fn charge(&self, cents: u64) -> Result<String, StepFailed> {
        let key = self.ctx.idempotency_key();
        let charge = step(self, "charge", key.clone(), move |shop, key| shop.charge(key, cents));
        let (shop, same) = (Arc::clone(&self.shop), key.clone());
        let charge = charge
            .timeout(PATIENCE)
            // The bank knows a repeat, so another attempt is safe, also after one that took too long.
            .retry(RetryPolicy { maximum_attempts: 3, ..RetryPolicy::default() })
            .in_doubt(InDoubt::verify(move || Arc::clone(&shop).find_charge(same.clone())));
        self.saga.run(charge, undo(self, "refund", key, S::refund)).await
    }

    async fn reserve(&self, order: &Order) -> Result<(), StepFailed> {
        let reserve = step(self, "reserve", order.clone(), S::reserve)
            .timeout(PATIENCE)
            .retry(unless_it_may_have_happened())
            .in_doubt(InDoubt::Fail);
        self.saga.run(reserve, undo(self, "release", order.clone(), S::release)).await
    }

    async fn ship(&self, order: &Order) -> Result<String, StepFailed> {
        let ship = step(self, "ship", order.clone(), S::ship)
            .timeout(CARRIER_PATIENCE)
            .retry(unless_it_may_have_happened())
            .in_doubt(InDoubt::AskHuman);
        self.saga.run(ship, undo(self, "recall", order.clone(), S::recall)).await
    }
}

/// Three attempts, but none after one that took too long: its receiver does not know a repeat.
fn unless_it_may_have_happened() -> RetryPolicy {
    let non_retryable_kinds = vec!["StepTimeout".to_owned()];
    RetryPolicy { maximum_attempts: 3, non_retryable_kinds, ..RetryPolicy::default() }
}

fn step<S, A, T, Fut>(
    partners: &Partners<S>,
    name: &str,
    argument: A,
    call: impl Fn(Arc<S>, A) -> Fut + Send + Sync + 'static,
) -> Step<T>
where
    S: Shop,
    A: Clone + Send + Sync + 'static,
    T: Serialize + DeserializeOwned + Send + 'static,
    Fut: Future<Output = Result<T, StepError>> + Send + 'static,
{
    let shop = Arc::clone(&partners.shop);
    partners.ctx.step(name, move || call(Arc::clone(&shop), argument.clone()))
}

/// What undoes a step, whether or not it is known to have happened: a step that is built when it runs.
fn undo<S, A, T, Fut>(
    partners: &Partners<S>,
    name: &'static str,
    argument: A,
    call: impl Fn(Arc<S>, A) -> Fut + Send + Sync + 'static,
) -> impl FnOnce(Option<&T>) -> Step<()> + Send + 'static
where
    S: Shop,
    A: Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<(), StepError>> + Send + 'static,
{
    let (ctx, shop) = (partners.ctx.clone(), Arc::clone(&partners.shop));
    move |_| ctx.step(name, move || call(Arc::clone(&shop), argument.clone()))
}
