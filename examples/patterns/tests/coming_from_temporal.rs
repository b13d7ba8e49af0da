//! The Rust of `docs/coming-from-temporal.md`, word for word; a test compares the two texts.

use everstep::testing::{Error, Mock, TestEnv};
use everstep::{
    ChildError, Client, Ctx, InDoubt, QueuedDoubt, Refused, RetryPolicy, StepCtx, StepError, StepType,
};
use everstep::{Worker, WorkflowError, saga, select};
use std::time::Duration;

async fn make(_url: &str, _part: u64) -> Result<(), std::io::Error> {
    Ok(())
}

async fn charge(key: String, cents: u64) -> Result<String, StepError> {
    Ok(format!("{key}: {cents}"))
}

async fn find_charge(_key: String) -> Result<Option<String>, StepError> {
    Ok(None)
}

async fn refund(_key: String) -> Result<(), StepError> {
    Ok(())
}

async fn greet(ctx: Ctx, name: String) -> Result<String, WorkflowError> {
    let greeting = ctx
        .step("compose", move || {
            let name = name.clone();
            async move { Ok::<_, StepError>(format!("Hello, {name}!")) }
        })
        .timeout(Duration::from_secs(5))
        .retry(RetryPolicy { maximum_attempts: 3, ..RetryPolicy::default() })
        .await?;
    ctx.sleep(Duration::from_secs(24 * 3600)).await;
    Ok(greeting)
}

struct Transcode;

impl StepType for Transcode {
    const NAME: &'static str = "transcode";
    type Input = String;
    type Output = u64;
}

async fn publish(ctx: Ctx, url: String) -> Result<u64, WorkflowError> {
    let bytes = ctx
        .run::<Transcode>(url)
        .task_queue("video")
        .schedule_to_start(Duration::from_secs(600))
        .start_to_close(Duration::from_secs(2 * 3600))
        .heartbeat(Duration::from_secs(10))
        .await?;
    Ok(bytes)
}

async fn transcode(step: StepCtx, url: String) -> Result<u64, StepError> {
    let first = step.last_heartbeat::<u64>().unwrap_or(0);
    for part in first..100 {
        if step.is_canceled() {
            return Err(step.stopped("nobody wants it any more"));
        }
        make(&url, part).await?;
        step.heartbeat(&(part + 1));
    }
    Ok(100)
}

async fn host() -> Result<(), Box<dyn std::error::Error>> {
    let flows =
        Worker::builder("http://127.0.0.1:7417").register("greet", greet).register("publish", publish);
    let video = Worker::builder("http://127.0.0.1:7417")
        .task_queue("video")
        .step_slots(4)
        .register_step::<Transcode, _, _>(transcode);
    tokio::try_join!(flows.build()?.run(), video.build()?.run())?;
    Ok(())
}

async fn cart(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let items = ctx.state(0);
    ctx.on_query("items", {
        let items = items.clone();
        move |(): ()| Ok(items.get())
    });
    let agrees = |n: &u32| if *n > 0 { Ok(()) } else { Err(Refused::new("must be positive")) };
    ctx.on_update("add", agrees, {
        let items = items.clone();
        move |ctx: Ctx, n: u32| {
            let items = items.clone();
            async move {
                ctx.step("reserve", move || async move { Ok::<_, StepError>(n) }).await?;
                items.set(items.get() + n);
                Ok(items.get())
            }
        }
    });
    let paid = select! {
        paid = ctx.signal::<bool>("paid") => paid?,
        _ = ctx.sleep(Duration::from_secs(3600)) => false,
    };
    ctx.updates_finished().await;
    Ok(if paid { items.get() } else { 0 })
}

async fn shop(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    let cart = client.workflow::<u32>("cart").workflow_id("cart/7");
    let items: u32 = cart.update_with_start("add", &2, &()).await?;
    let cart = client.latest::<u32>("cart/7");
    let same: u32 = cart.query("items", &()).await?;
    assert_eq!(items, same);
    cart.signal("paid", &true).await?;
    assert_eq!(cart.result().await?, items);
    Ok(())
}

async fn order(ctx: Ctx, cents: u64) -> Result<u64, WorkflowError> {
    let fee = match ctx.version("handling-fee", 0..=1) {
        0 => 0,
        _ => ctx.step("fee", || async { Ok::<_, StepError>(250) }).await?,
    };
    let charged = ctx.step("charge", move || async move { Ok::<_, StepError>(cents) }).await?;
    Ok(charged + fee)
}

async fn remind(ctx: Ctx, mut sent: u64) -> Result<(), WorkflowError> {
    loop {
        ctx.sleep(Duration::from_secs(24 * 3600)).await;
        ctx.step("remind", || async { Ok::<_, StepError>(()) }).await?;
        sent += 1;
        if ctx.should_continue_as_new() {
            return Err(ctx.continue_as_new(&sent));
        }
    }
}

async fn count_all(ctx: Ctx, parts: u32) -> Result<u64, ChildError> {
    let mut running = everstep::buffered((0..parts).map(|part| ctx.child::<u64>("count", part)), 20);
    let mut sum = 0;
    while let Some(counted) = running.next().await {
        sum += counted?;
    }
    Ok(sum)
}

async fn pay(ctx: Ctx, cents: u64) -> Result<String, WorkflowError> {
    let key = ctx.idempotency_key();
    let same = key.clone();
    let code = ctx.clone();
    let paid = saga(&ctx, |saga| async move {
        let ctx = code;
        let charge = ctx.step("charge", move || charge(key.clone(), cents)).in_doubt(InDoubt::verify({
            let key = same.clone();
            move || find_charge(key.clone())
        }));
        let undo = {
            let ctx = ctx.clone();
            move |_: Option<&String>| ctx.step("refund", move || refund(same.clone()))
        };
        let charge = saga.run(charge, undo).await?;
        ctx.run::<Transcode>("receipt".to_owned()).in_doubt(QueuedDoubt::AskHuman).await?;
        Ok(charge)
    });
    Ok(paid.await?)
}

#[tokio::test]
async fn a_greeting_takes_a_day() -> Result<(), Error> {
    let mut env = TestEnv::new().register("greet", greet).mock("compose", Mock::returns("Hi!"));
    let run = env.start("greet", "Ada").await?;
    assert_eq!(env.result::<String>(run).await?, "Hi!");
    assert_eq!(env.elapsed(), Duration::from_secs(24 * 3600));
    Ok(())
}

#[tokio::test]
async fn the_other_workflows_do_what_the_page_says() -> Result<(), Error> {
    let mut env = TestEnv::new().register("cart", cart).register("order", order);
    let run = env.start("order", &1_000).await?;
    assert_eq!(env.result::<u64>(run).await?, 1_250);
    let run = env.start("cart", &()).await?;
    env.signal(run, "paid", &true).await?;
    assert_eq!(env.result::<u32>(run).await?, 0);
    Ok(())
}

/// What needs a server is compiled, and kept from being called unused.
#[test]
fn what_needs_a_server_fits_its_types() {
    let _ = (host, shop, publish, transcode, remind, count_all, pay);
}

/// Every block of Rust on the page stands in this file.
#[test]
fn the_page_says_what_is_compiled_here() {
    let (page, here) =
        (include_str!("../../../docs/coming-from-temporal.md"), include_str!("coming_from_temporal.rs"));
    let blocks: Vec<&str> = page.split("```rust\n").skip(1).filter_map(|b| b.split("```").next()).collect();
    assert!(blocks.len() >= 8, "{}", blocks.len());
    for block in blocks {
        assert!(here.contains(block), "not compiled:\n{block}");
    }
}
