//! A workflow whose code changes while runs of it are open.
//!
//! A run lives longer than the build that began it. Whatever a new build does must fit what the old one has recorded
//! of the runs that are still open. Here a fee comes before the charge, in three builds:
//!
//! - [`v1`] is what runs in production.
//! - [`v2`] has the fee behind a marker: runs that were past that place keep the old code, all others pay the fee.
//! - [`v2_unmarked`] is the mistake: it fits new runs, and blocks those that have been charged already.
//!
//! The mistake is found before it is deployed. Start the new binary with `EVERSTEP_CHECK_ONLY=1` and hold it against
//! the runs that there are; it takes none of them:
//!
//! ```text
//! $ everstep worker check --build v2-unmarked --open
//! run 0190… (order, 9 events) differs at event 8 (StepCompleted):
//!     the history has  step 'charge' #1
//!     the code         step 'fee' #1
//!     at               examples/patterns/src/changed.rs:93:31
//!     builds           recorded by v1, checked with v2-unmarked
//! everstep: 1 of 2 histories do not fit build 'v2-unmarked'
//! ```

use everstep::{Ctx, StepError, WorkflowError};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The name under which every build registers the workflow.
pub const WORKFLOW: &str = "order";
/// The change that brings the fee.
pub const FEE: &str = "handling-fee";

/// What was ordered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The order's id.
    pub id: String,
    /// What it costs, in cents.
    pub cents: u64,
}

/// What was paid, in cents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// For the goods.
    pub goods: u64,
    /// For handling them.
    pub fee: u64,
}

/// Charges an order once it is confirmed, and ends when it has been delivered.
///
/// # Errors
/// When a step fails for good, or a signal is not of its type.
pub async fn v1(ctx: Ctx, order: Order) -> Result<Receipt, WorkflowError> {
    ctx.signal::<()>("confirm").await?;
    let goods = pay(&ctx, "charge", order.cents).await?;
    ctx.signal::<()>("delivered").await?;
    Ok(Receipt { goods, fee: 0 })
}

/// The same with a fee, for every run that has not come to its charge yet.
///
/// # Errors
/// As [`v1`].
pub async fn v2(ctx: Ctx, order: Order) -> Result<Receipt, WorkflowError> {
    ctx.signal::<()>("confirm").await?;
    let fee = match ctx.version(FEE, 0..=1) {
        0 => 0,
        _ => pay(&ctx, "fee", 250).await?,
    };
    let goods = pay(&ctx, "charge", order.cents).await?;
    ctx.signal::<()>("delivered").await?;
    Ok(Receipt { goods, fee })
}

/// The same fee without a marker: a run that was charged by [`v1`] has a charge where this code has a fee.
///
/// # Errors
/// As [`v1`].
pub async fn v2_unmarked(ctx: Ctx, order: Order) -> Result<Receipt, WorkflowError> {
    ctx.signal::<()>("confirm").await?;
    let fee = pay(&ctx, "fee", 250).await?;
    let goods = pay(&ctx, "charge", order.cents).await?;
    ctx.signal::<()>("delivered").await?;
    Ok(Receipt { goods, fee })
}

/// Stands for a call to whoever takes the money.
async fn pay(ctx: &Ctx, what: &str, cents: u64) -> Result<u64, WorkflowError> {
    Ok(ctx.step(what.to_owned(), move || async move { Ok::<_, StepError>(cents) }).await?)
}
