//! Starts that bring a signal or an update along, queries, and ids of requests.

use everstep::testing::{Error, Rejection, Scenario, TestEnv};
use everstep::{Ctx, Refused, RetryPolicy, RunStatus, WorkflowError};

async fn gather(ctx: Ctx, many: usize) -> Result<Vec<u32>, WorkflowError> {
    let mut all = Vec::new();
    while all.len() < many {
        all.push(ctx.signal::<u32>("add").await?);
    }
    Ok(all)
}

async fn cart(ctx: Ctx, enough: u32) -> Result<u32, WorkflowError> {
    let total = ctx.state(0u32);
    ctx.on_query("total", {
        let total = total.clone();
        move |(): ()| Ok(total.get())
    });
    let before = total.clone();
    let agrees = move |n: &u32| match (*n, before.get()) {
        (0, _) => Err(Refused::new("must be positive")),
        (n, total) if n == total => Err(Refused::new("once is enough")),
        _ => Ok(()),
    };
    ctx.on_update("add", agrees, {
        let total = total.clone();
        move |_: Ctx, n: u32| {
            let sum = total.update(|total| {
                *total += n;
                *total
            });
            async move { Ok(sum) }
        }
    });
    ctx.wait(|| total.get() >= enough).await;
    Ok(total.get())
}

#[tokio::test]
async fn a_signal_starts_the_run_that_it_does_not_find() -> Result<(), Error> {
    let mut env = TestEnv::new().register("gather", gather);
    let start = |request: &str| Scenario::new("gather", &2).workflow_id("g").request_id(request);
    let run = env.signal_with_start(start("r1"), "add", &1).await?;
    assert_eq!(env.history(run)?.kinds()[..2], ["RunStarted", "SignalReceived"], "from its first moment");
    assert_eq!(env.signal_with_start(start("r1"), "add", &1).await?, run, "a repeat");
    assert_eq!(env.signal_with_start(start("r2"), "add", &2).await?, run, "the run that is there");
    assert_eq!(env.result::<Vec<u32>>(run).await?, [1, 2]);

    // Repeats of calls that this run took, also when it is over; then a call of its own.
    for (request, value) in [("r1", 1), ("r2", 2)] {
        assert_eq!(env.signal_with_start(start(request), "add", &value).await?, run, "{request}");
    }
    let other = env.signal_with_start(start("r1"), "add", &7).await;
    assert!(matches!(other, Err(Error::Refused(Rejection::IdempotencyMismatch { .. }))), "{other:?}");
    let next = env.signal_with_start(start("r3"), "add", &3).await?;
    assert_ne!(next, run);
    assert_eq!(env.status(next)?, RunStatus::Running);
    let nameless = env.signal_with_start(Scenario::new("gather", &2), "add", &1).await;
    assert!(matches!(nameless, Err(Error::Refused(_))), "{nameless:?}");
    Ok(())
}

#[tokio::test]
async fn an_update_starts_the_run_that_it_does_not_find() -> Result<(), Error> {
    let mut env = TestEnv::new().register("cart", cart);
    let start = |request: &str| Scenario::new("cart", &9).workflow_id("c").request_id(request);
    assert_eq!(env.update_with_start::<u32>(start("u1"), "add", &4).await?, 4);
    assert_eq!(env.update_with_start::<u32>(start("u1"), "add", &4).await?, 4, "a repeat");
    let refused = env.update_with_start::<u32>(start("u2"), "add", &0).await;
    assert!(matches!(refused, Err(Error::UpdateRejected(_))), "{refused:?}");
    let (run, id) = env.start_with_update(start("u3"), "add", &5).await?;
    assert_eq!(id, "u3");
    assert_eq!(env.update_result::<u32>(run, &id).await?, 9);
    assert_eq!(env.result::<u32>(run).await?, 9);
    assert_eq!(env.update_with_start::<u32>(start("u3"), "add", &5).await?, 9, "also when the run is over");
    Ok(())
}

#[tokio::test]
async fn an_update_is_one_by_its_id_and_a_query_changes_nothing() -> Result<(), Error> {
    let mut env = TestEnv::new().register("cart", cart);
    let run = env.start("cart", &9).await?;
    env.start_update_with_id(run, "u", "add", &4).await?;
    env.start_update_with_id(run, "u", "add", &4).await?;
    let other = env.start_update_with_id(run, "u", "add", &5).await;
    assert!(matches!(other, Err(Error::Refused(Rejection::IdempotencyMismatch { .. }))), "{other:?}");
    let events = env.history(run)?.events().len();
    assert_eq!(env.query::<u32>(run, "total", &())?, 4);
    let unknown = env.query::<u32>(run, "sum", &()).unwrap_err();
    assert_eq!(unknown.failure().map(|f| f.kind.as_str()), Some("UnknownQuery"));
    assert_eq!(env.history(run)?.events().len(), events);
    env.update::<u32>(run, "add", &5).await?;
    assert_eq!(env.result::<u32>(run).await?, 9);
    assert_eq!(env.query::<u32>(run, "total", &())?, 9, "a closed run answers too");
    Ok(())
}

#[tokio::test]
async fn code_knows_which_attempt_it_is_and_where_it_comes_from() -> Result<(), Error> {
    let stubborn = |ctx: Ctx, (): ()| async move {
        let info = ctx.run_info().clone();
        match info.attempt {
            3 => Ok((info.previous.is_some(), ctx.child::<bool>("has_parent", ()).await?)),
            _ => Err(WorkflowError::new("NotYet", "m")),
        }
    };
    let has_parent =
        |ctx: Ctx, (): ()| async move { Ok::<_, WorkflowError>(ctx.run_info().parent.is_some()) };
    let mut env = TestEnv::new().register("stubborn", stubborn).register("has_parent", has_parent);
    let three = RetryPolicy { maximum_attempts: 3, ..RetryPolicy::default() };
    let run = env.play(Scenario::new("stubborn", &()).retry(three)).await?;
    assert_eq!(env.result::<(bool, bool)>(run).await?, (true, true));
    Ok(())
}
