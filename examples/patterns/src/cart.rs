//! A cart: whoever shops asks what is in it (a query), puts something in (an update, which the cart may refuse), and pays
//! (a signal). A cart that nobody touches for a day is given up, and what was held for it is let go of.
//!
//! There is no call that opens a cart: the first thing that is put in starts it.
//!
//! ```text
//! everstep run update cart/7 add --start cart --input '{"name": "book", "count": 2}'
//! everstep run query cart/7 items
//! everstep run update cart/7 add --input '{"name": "book", "count": 0}'      # refused
//! everstep run signal cart/7 pay
//! everstep run result cart/7
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use everstep::{Ctx, Refused, StepError, WorkflowError, select};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The name under which a worker registers the workflow.
pub const WORKFLOW: &str = "cart";
/// Asks what is in the cart.
pub const ITEMS: &str = "items";
/// Puts something into the cart, and says how many things are in it then.
pub const ADD: &str = "add";
/// Says that the customer has paid.
pub const PAY: &str = "pay";
/// How long a cart waits for its customer.
pub const PATIENCE: Duration = Duration::from_secs(24 * 3_600);
/// Things that fit into one cart.
pub const FITS: u32 = 100;

/// Some of one thing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Item {
    /// What.
    pub name: String,
    /// How many.
    pub count: u32,
}

/// How a cart ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkout {
    /// What was in it.
    pub items: BTreeMap<String, u32>,
    /// False when nobody came back.
    pub paid: bool,
}

/// Holds things for carts.
pub trait Shelf: Send + Sync + 'static {
    /// Holds so many for the cart, once for each key.
    fn hold(self: Arc<Self>, key: String, item: Item) -> impl Future<Output = Result<(), StepError>> + Send;
    /// Lets go of all that is held for the cart.
    fn release(self: Arc<Self>, cart: String) -> impl Future<Output = Result<(), StepError>> + Send;
}

/// Carries a cart to its end.
///
/// # Errors
/// When what was held cannot be let go of.
pub async fn shop<S: Shelf>(ctx: Ctx, shelf: Arc<S>, (): ()) -> Result<Checkout, WorkflowError> {
    let items = ctx.state(BTreeMap::<String, u32>::new());
    let touched = ctx.state(0_u32);
    ctx.on_query(ITEMS, {
        let items = items.clone();
        move |(): ()| Ok(items.get())
    });
    let seen = items.clone();
    let agrees = move |item: &Item| {
        let inside: u32 = seen.with(|items| items.values().sum());
        match item.count {
            0 => Err(Refused::new("there has to be at least one")),
            count if count > FITS - inside.min(FITS) => Err(Refused::new(format!("only {FITS} things fit"))),
            _ => Ok(()),
        }
    };
    ctx.on_update(ADD, agrees, {
        let (shelf, items, touched) = (Arc::clone(&shelf), items.clone(), touched.clone());
        move |ctx: Ctx, item: Item| {
            let (shelf, items, touched) = (Arc::clone(&shelf), items.clone(), touched.clone());
            async move {
                touched.update(|n| *n += 1);
                let (key, held) = (ctx.idempotency_key(), item.clone());
                ctx.step("hold", move || Arc::clone(&shelf).hold(key.clone(), held.clone())).await?;
                Ok(items.update(|items| {
                    *items.entry(item.name).or_default() += item.count;
                    items.values().sum::<u32>()
                }))
            }
        }
    });
    let paid = waits_for_payment(&ctx, &touched).await?;
    ctx.updates_finished().await;
    if !paid {
        let cart = ctx.run_info().workflow_id.clone();
        ctx.step("release", move || Arc::clone(&shelf).release(cart.clone())).await?;
    }
    Ok(Checkout { items: items.get(), paid })
}

/// Until the customer pays, or has not touched the cart for too long.
async fn waits_for_payment(ctx: &Ctx, touched: &everstep::State<u32>) -> Result<bool, WorkflowError> {
    let mut paid = ctx.signal::<()>(PAY);
    loop {
        let before = touched.get();
        select! {
            paid = &mut paid => return Ok(paid.map(|()| true)?),
            _ = ctx.canceled() => return Ok(false),
            _ = ctx.wait(|| touched.get() != before) => {}
            _ = ctx.sleep(PATIENCE) => return Ok(false),
        }
    }
}
