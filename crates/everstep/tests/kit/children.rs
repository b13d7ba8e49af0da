//! Children and requests between runs, in the test kit.

use std::time::Duration;

use everstep::testing::{Error, Mock, Scenario, SimulationFailed, TestEnv, simulate};
use everstep::{ChildError, Ctx, ParentClose, RetryPolicy, StepError, WorkflowError, join};

const HOUR: Duration = Duration::from_secs(3600);

async fn double(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
    ctx.sleep(HOUR).await;
    let quick = RetryPolicy { maximum_attempts: 5, ..RetryPolicy::default() };
    Ok(ctx.step("double", move || async move { Ok::<_, StepError>(n * 2) }).retry(quick).await?)
}

/// Gives the sum of what it is sent, in order, until it is sent nothing.
async fn sums(ctx: Ctx, (): ()) -> Result<Vec<u32>, WorkflowError> {
    let mut all = Vec::new();
    loop {
        match ctx.signal::<u32>("add").await? {
            0 => return Ok(all),
            n => all.push(n),
        }
    }
}

async fn parent(ctx: Ctx, (): ()) -> Result<(u32, Vec<u32>), WorkflowError> {
    let adder = ctx.child::<Vec<u32>>("sums", ()).workflow_id("sums").start().await?;
    let (left, right) = join!(ctx.child::<u32>("double", 1), ctx.child::<u32>("double", 2));
    for n in [left?, right?] {
        adder.signal("add", &n).await?;
    }
    let taken = ctx.child::<u32>("double", 3).workflow_id("sums").await;
    assert!(matches!(&taken, Err(ChildError::NotStarted(f)) if f.kind == "AlreadyStarted"), "{taken:?}");
    let nobody = ctx.external("nobody").signal("add", &1).await;
    assert!(matches!(&nobody, Err(failed) if failed.failure.kind == "RunNotFound"), "{nobody:?}");
    ctx.external("sums").signal("add", &0).await?;
    Ok((7, adder.result().await?))
}

fn env() -> TestEnv {
    TestEnv::new().register("parent", parent).register("double", double).register("sums", sums)
}

#[tokio::test]
async fn children_run_in_the_environment() -> Result<(), Error> {
    let mut env = env();
    let run = env.start("parent", &()).await?;
    assert_eq!(env.result::<(u32, Vec<u32>)>(run).await?, (7, vec![2, 4]));
    assert_eq!(env.elapsed(), HOUR, "side by side");
    assert_eq!(env.effects().len(), 2);
    Ok(())
}

async fn leaves(ctx: Ctx, policy: ParentClose) -> Result<(), WorkflowError> {
    ctx.child::<u32>("double", 1).workflow_id("left").on_parent_close(policy).start().await?;
    Ok(())
}

#[tokio::test]
async fn a_parent_that_ends_stops_its_child_or_leaves_it_alone() -> Result<(), Error> {
    for (policy, doubled) in [(ParentClose::Terminate, 0), (ParentClose::Abandon, 1)] {
        let mut env = TestEnv::new().register("leaves", leaves).register("double", double);
        let run = env.start("leaves", &policy).await?;
        env.result::<()>(run).await?;
        env.skip(2 * HOUR).await?;
        assert_eq!(env.effects().len(), doubled, "{policy:?}");
    }
    Ok(())
}

/// Starts itself as its own child until that is refused; gives how many runs there are, and why no more.
async fn again(ctx: Ctx, runs: u32) -> Result<(u32, String), WorkflowError> {
    match ctx.child::<(u32, String)>("again", runs + 1).await {
        Ok(below) => Ok(below),
        Err(ChildError::NotStarted(failure)) => {
            Ok((runs + 1, format!("{}: {}", failure.kind, failure.message)))
        }
        Err(error) => Err(error.into()),
    }
}

#[tokio::test]
async fn a_workflow_that_starts_itself_for_ever_is_told() -> Result<(), Error> {
    let mut env = TestEnv::new().register("again", again);
    let run = env.start("again", &0).await?;
    let (runs, why) = env.result::<(u32, String)>(run).await?;
    assert_eq!(runs, 65, "the first and 64 generations of children");
    assert!(why.starts_with("LimitExceeded: the child's generation"), "{why}");
    Ok(())
}

async fn ships(ctx: Ctx, memo: bool) -> Result<String, WorkflowError> {
    let child = ctx.child::<u32>("double", 1).attribute("customer", "acme").attribute("none", None::<i64>);
    let child = if memo {
        child.memo("note", &"fragile")
    } else {
        child.memo("note", &std::collections::BTreeMap::from([((1, 2), 3)]))
    };
    match child.start().await {
        Ok(child) => Ok(child.run_id().to_string()),
        Err(ChildError::NotStarted(failure)) => Ok(failure.kind),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test]
async fn a_child_has_what_its_parent_says_about_it() -> Result<(), Error> {
    let mut env = TestEnv::new().register("ships", ships).register("double", double);
    let run = env.start("ships", &true).await?;
    let child = env.result::<String>(run).await?.parse().expect("a run id");
    let (attributes, memo) = env.notes(child)?;
    assert_eq!(attributes.len(), 1);
    assert_eq!(attributes["customer"], everstep::Attribute::Keyword("acme".into()));
    assert_eq!(everstep::decode::<String>(&memo["note"]).ok().as_deref(), Some("fragile"));
    let run = env.start("ships", &false).await?;
    assert_eq!(env.result::<String>(run).await?, "Payload", "a memo that is no JSON");
    Ok(())
}

#[tokio::test]
async fn a_child_without_its_workflow_is_told_to_the_test() {
    let mut env = TestEnv::new().register("leaves", leaves);
    let error = env.start("leaves", &ParentClose::Terminate).await.unwrap_err();
    assert!(matches!(&error, Error::UnknownWorkflow { name, .. } if name == "double"), "{error}");
}

#[tokio::test]
async fn parents_and_children_end_alike_under_every_seed() -> Result<(), SimulationFailed> {
    let flaky = Mock::real().fails_first(1, StepError::new("Unavailable", "503"));
    simulate(move || env().mock("double", flaky.clone()), Scenario::new("parent", &()))
        .seeds(0..300)
        .same_result()
        .invariant("one key for each child", |end| end.effects().distinct_keys() == 2)
        .invariant("in order or beside", |end| end.result::<(u32, Vec<u32>)>() == Some((7, vec![2, 4])))
        .run()
        .await?;
    Ok(())
}
