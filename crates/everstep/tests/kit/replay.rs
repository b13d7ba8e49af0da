//! Stored histories against code: what fits, and the first event of what does not.

use std::time::Duration;

use everstep::testing::{Difference, Error, History, Mock, ReplayError, Replayer, TestEnv};
use everstep::{Ctx, RunId, StepError, WorkflowError};

const HOUR: Duration = Duration::from_secs(3600);

/// In the form of `everstep admin export` before the seed was a part of it: two runs of `ship`, the second one open.
const EXPORT: &str = include_str!("export.jsonl");

async fn step(ctx: &Ctx, name: &str, value: f64) -> Result<f64, WorkflowError> {
    Ok(ctx.step(name.to_owned(), move || async move { Ok::<_, StepError>(value) }).await?)
}

async fn ship(ctx: Ctx, weight: f64) -> Result<f64, WorkflowError> {
    let price = step(&ctx, "quote", weight * 1.1).await?;
    ctx.sleep(HOUR).await;
    let discount = ctx.signal::<f64>("discount").await?;
    step(&ctx, "ship", price - discount).await
}

/// A history of `ship`, and of how far it had come before its signal.
async fn recorded() -> Result<(History, History), Error> {
    let mut env = TestEnv::new().register("ship", ship);
    let run = env.start("ship", &10.0).await?;
    env.skip(HOUR).await?;
    let open = env.history(run)?;
    env.signal(run, "discount", &1.0).await?;
    assert!((env.result::<f64>(run).await? - 10.0).abs() < 1e-9);
    Ok((env.history(run)?, open))
}

#[tokio::test]
async fn a_history_survives_its_wire_form() -> Result<(), Box<dyn std::error::Error>> {
    let (closed, open) = recorded().await?;
    for history in [&closed, &open] {
        let data = history.to_bytes();
        assert_eq!(&History::from_bytes(&data)?, history);
        assert_eq!(History::read_all(&data)?, std::slice::from_ref(history));
        Replayer::new().register("ship", ship).check(history)?;
    }
    let data = closed.to_bytes();
    assert!(History::from_bytes(&data[..data.len() - 1]).is_err(), "cut off");
    assert!(History::from_bytes(b"").is_err(), "no header");
    assert!(History::from_bytes(b"MZ").is_err(), "something else");
    Ok(())
}

#[test]
fn an_export_is_read_and_replayed() -> Result<(), Box<dyn std::error::Error>> {
    let histories = History::read_all(EXPORT.as_bytes())?;
    assert_eq!(histories.len(), 2);
    let replayer = Replayer::new().register("ship", ship);
    for history in &histories {
        assert_eq!(history.workflow_type(), "ship");
        replayer.check(history)?;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kit/export.jsonl");
    assert_eq!(replayer.check_file(path)?, 2);
    Ok(())
}

#[test]
fn what_is_no_history_is_refused_with_its_place() {
    let problem = |text: &str| History::read_all(text.as_bytes()).unwrap_err().to_string();
    assert!(problem("{\"table\": \"events\"").starts_with("line 1: "));
    let newer = EXPORT.replacen("StepCompleted", "StepTeleported", 1);
    assert!(problem(&newer).contains("kind 'StepTeleported' are not known"), "{}", problem(&newer));
    let lines: Vec<&str> = EXPORT.lines().filter(|line| !line.contains("\"seq\":3,")).collect();
    assert!(problem(&lines.join("\n")).contains("event 4 follows event 2"), "{}", problem(&lines.join("\n")));
    let odd = EXPORT.replacen("\"attempt\":1", "\"attempt\":\"one\"", 1);
    assert!(problem(&odd).contains("attempt is no number"), "{}", problem(&odd));
}

#[test]
fn an_empty_corpus_proves_nothing() -> std::io::Result<()> {
    let folder = tempfile::tempdir()?;
    let replayer = Replayer::new().register("ship", ship);
    assert!(matches!(replayer.check_dir(folder.path()), Err(ReplayError::Empty(_))));
    std::fs::write(folder.path().join("none.jsonl"), "")?;
    assert!(matches!(replayer.check_dir(folder.path()), Err(ReplayError::Empty(_))));
    std::fs::write(folder.path().join("none.jsonl"), EXPORT)?;
    let unknown = Replayer::new().check_dir(folder.path()).unwrap_err();
    assert!(unknown.to_string().contains("workflow 'ship', which is not registered"), "{unknown}");
    Ok(())
}

/// The first event of `history` that this code does not follow.
fn differs<F, Fut>(history: &History, changed: F) -> Difference
where
    F: Fn(Ctx, f64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<f64, WorkflowError>> + Send + 'static,
{
    match Replayer::new().register("ship", changed).check(history) {
        Err(ReplayError::Differs(difference)) => *difference,
        other => panic!("not found: {other:?}"),
    }
}

#[tokio::test]
async fn the_first_event_that_differs_is_named() -> Result<(), Error> {
    let (history, open) = recorded().await?;
    let of = |kind: &str| history.events().iter().find(|e| e.body.kind() == kind).map_or(0, |e| e.seq);

    let renamed = differs(&history, |ctx, w| async move { step(&ctx, "offer", w).await });
    assert_eq!((renamed.seq, &*renamed.kind), (of("StepCompleted"), "StepCompleted"));
    assert_eq!((&*renamed.expected, &*renamed.produced), ("step 'quote' #1", "step 'offer' #1"));
    assert!(renamed.source.contains("kit/replay.rs:"), "{renamed}");

    let shorter = differs(&history, |ctx, w| async move { step(&ctx, "quote", w).await });
    assert_eq!((shorter.seq, &*shorter.produced), (of("TimerStarted"), "has ended"));
    assert_eq!(differs(&open, |ctx, w| async move { step(&ctx, "quote", w).await }).seq, shorter.seq);

    let another = |value: f64| {
        move |ctx: Ctx, weight: f64| async move { ship(ctx, weight).await.map(|price| price + value) }
    };
    let result = differs(&history, another(1.0));
    assert_eq!((result.seq, &*result.kind), (of("RunCompleted"), "RunCompleted"));
    assert!(result.produced.starts_with("returns 11."), "{result}");
    Replayer::new().register("ship", another(1e-15)).check(&history).unwrap();

    let longer = differs(&history, |ctx, w| async move {
        let price = ship(ctx.clone(), w).await?;
        step(&ctx, "thank", price).await
    });
    assert_eq!(longer.produced, "still wants step 'thank' #4");
    let waits = differs(&history, |ctx, w| async move {
        let price = ship(ctx.clone(), w).await?;
        ctx.signal::<f64>("thanks").await?;
        Ok(price)
    });
    assert_eq!(waits.produced, "still waits");
    let fails = differs(&history, |ctx, w| async move {
        ship(ctx, w).await?;
        Err(WorkflowError::new("TooLate", "as changed"))
    });
    assert_eq!(fails.produced, "fails with 'TooLate': as changed");
    Ok(())
}

#[tokio::test]
async fn a_step_that_is_built_and_not_awaited_any_more_differs() -> Result<(), Error> {
    let (history, open) = recorded().await?;
    let unawaited = |ctx: Ctx, weight: f64| async move {
        let quote = ctx.step("quote", move || async move { Ok::<_, StepError>(weight) });
        ctx.sleep(HOUR).await;
        drop(quote);
        Ok(weight)
    };
    for history in [&history, &open] {
        let difference = differs(history, unawaited);
        assert_eq!(difference.kind, "StepCompleted");
        assert_eq!(difference.produced, "builds it and does not await it");
    }
    Ok(())
}

#[tokio::test]
async fn random_numbers_repeat_unless_the_export_has_no_seed() -> Result<(), Box<dyn std::error::Error>> {
    async fn lottery(ctx: Ctx, (): ()) -> Result<u64, WorkflowError> {
        let drawn = ctx.random();
        Ok(ctx.step("draw", move || async move { Ok::<_, StepError>(drawn) }).await?)
    }
    async fn unsteady(ctx: Ctx, (): ()) -> Result<u64, WorkflowError> {
        let drawn = ctx.random();
        Ok(ctx.step(format!("draw {drawn}"), move || async move { Ok::<_, StepError>(drawn) }).await?)
    }
    let mut env = TestEnv::new().register("lottery", unsteady).mock("draw", Mock::returns(1));
    let run: RunId = env.start("lottery", &()).await?;
    Replayer::new().register("lottery", unsteady).check(&env.history(run)?)?;

    let seedless = &History::read_all(EXPORT.replace("\"ship\"", "\"lottery\"").as_bytes())?[0];
    let differs =
        Replayer::new().register("lottery", |ctx, _: f64| lottery(ctx, ())).check(seedless).unwrap_err();
    assert!(differs.to_string().contains("the export has no seed"), "{differs}");
    Ok(())
}
