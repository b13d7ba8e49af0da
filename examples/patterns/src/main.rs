//! A worker that hosts the patterns with partners that only pretend, to try them by hand. It is killed and started
//! again as you like; the runs go on.
//!
//! ```text
//! everstep dev                                # in one terminal
//! cargo run -p everstep-example-patterns      # in another: this worker
//! everstep run start order-saga --input '{"id": "7", "item": "book", "cents": 1000}'
//! everstep run start reminders --workflow-id reminders/ada --input '{"to": "ada", "count": 30, "every": {"secs": 1, "nanos": 0}}'
//! everstep run start album --input '{"pictures": 1000, "at_once": 20}'
//! everstep run start film --input '{"name": "Metropolis", "parts": 60}'
//! everstep run update cart/7 add --start cart --input '{"name": "book", "count": 2}'
//! ```
//!
//! The bank takes a second and the encoder takes one for each part, so that there is time to kill the worker. An item
//! named `unicorn` is sold out.

use std::sync::Arc;
use std::time::Duration;

use everstep::{Ctx, StepCtx, StepError, Worker, WorkerError};
use everstep_example_patterns::cart::{self, Item, Shelf};
use everstep_example_patterns::fanout::{self, Studio};
use everstep_example_patterns::order::{self, Order, Shop};
use everstep_example_patterns::reminders::{self, Mail};
use everstep_example_patterns::transcode::{self, Encoder, Film, Transcode};

/// Everybody whom the patterns talk to.
struct Pretend;

fn say(what: &str) {
    eprintln!("{what}");
}

impl Shop for Pretend {
    async fn charge(self: Arc<Self>, key: String, cents: u64) -> Result<String, StepError> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        say(&format!("bank: takes {cents} cents for {key}"));
        Ok(key)
    }

    async fn find_charge(self: Arc<Self>, key: String) -> Result<Option<String>, StepError> {
        say(&format!("bank: knows nothing of {key}"));
        Ok(None)
    }

    async fn refund(self: Arc<Self>, key: String) -> Result<(), StepError> {
        say(&format!("bank: gives back what it took for {key}"));
        Ok(())
    }

    async fn reserve(self: Arc<Self>, order: Order) -> Result<(), StepError> {
        if order.item == "unicorn" {
            return Err(StepError::new("SoldOut", "there is none").non_retryable());
        }
        say(&format!("warehouse: holds a {} for order {}", order.item, order.id));
        Ok(())
    }

    async fn release(self: Arc<Self>, order: Order) -> Result<(), StepError> {
        say(&format!("warehouse: holds nothing for order {}", order.id));
        Ok(())
    }

    async fn ship(self: Arc<Self>, order: Order) -> Result<String, StepError> {
        say(&format!("carrier: has a parcel for order {}", order.id));
        Ok(format!("parcel of {}", order.id))
    }

    async fn recall(self: Arc<Self>, order: Order) -> Result<(), StepError> {
        say(&format!("carrier: brings back what there is of order {}", order.id));
        Ok(())
    }
}

impl Shelf for Pretend {
    async fn hold(self: Arc<Self>, key: String, item: Item) -> Result<(), StepError> {
        say(&format!("shelf: holds {} {} for {key}", item.count, item.name));
        Ok(())
    }

    async fn release(self: Arc<Self>, cart: String) -> Result<(), StepError> {
        say(&format!("shelf: holds nothing for {cart}"));
        Ok(())
    }
}

impl Mail for Pretend {
    async fn send(&self, _key: String, to: String, number: u32) -> Result<(), StepError> {
        say(&format!("mail: reminder {number} to {to}"));
        Ok(())
    }
}

impl Studio for Pretend {
    async fn shrink(&self, picture: u32) -> Result<u64, StepError> {
        if picture % 100 == 99 {
            return Err(StepError::new("Unreadable", format!("picture {picture}")).non_retryable());
        }
        Ok(10_000 + u64::from(picture))
    }
}

impl Encoder for Pretend {
    async fn make(&self, film: &Film, part: u32) -> Result<(), StepError> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        say(&format!("encoder: part {part} of {}", film.name));
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), WorkerError> {
    let address = std::env::var("EVERSTEP_ADDRESS").unwrap_or_else(|_| "http://127.0.0.1:7417".to_owned());
    let pretend = Arc::new(Pretend);
    let (shop, mail, studio, encoder, shelf) = (
        Arc::clone(&pretend),
        Arc::clone(&pretend),
        Arc::clone(&pretend),
        Arc::clone(&pretend),
        Arc::clone(&pretend),
    );
    let flows = Worker::builder(&address)
        .register(order::WORKFLOW, move |ctx: Ctx, input| order::carry_out(ctx, Arc::clone(&shop), input))
        .register(reminders::WORKFLOW, move |ctx: Ctx, plan| reminders::remind(ctx, Arc::clone(&mail), plan))
        .register(fanout::ALBUM, fanout::shrink_all)
        .register(fanout::PICTURE, move |ctx: Ctx, picture| fanout::shrink(ctx, Arc::clone(&studio), picture))
        .register(cart::WORKFLOW, move |ctx: Ctx, input| cart::shop(ctx, Arc::clone(&shelf), input))
        .register(transcode::WORKFLOW, transcode::publish);
    let film = move |step: StepCtx, film| transcode::transcode(step, Arc::clone(&encoder), film);
    let video = Worker::builder(&address).task_queue(transcode::QUEUE).register_step::<Transcode, _, _>(film);
    say(&format!("hosting the patterns at {address}"));
    tokio::try_join!(flows.build()?.run(), video.build()?.run())?;
    Ok(())
}
