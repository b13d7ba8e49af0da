//! Search attributes and memo, on every store.

use std::sync::Arc;
use std::time::Duration;

use everstep::client::{AttributeFilter, Comparison, RunListFilter};
use everstep::{
    Attribute, AttributeType, Client, ClientError, ContinueAsNew, Ctx, Notes, RetryPolicy, RunId, StepError,
    WorkflowError, attributes, decode,
};
use everstep_core::{EventBody, Run};
use everstep_dispatch::InProcess;
use everstep_store::Store;
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};

use crate::stores;

async fn node_on(store: &Arc<dyn Store>) -> anyhow::Result<RunningNode> {
    RunningNode::start(Arc::clone(store), Arc::new(InProcess::new()), NodeSettings::default()).await
}

async fn declare(client: &Client) -> anyhow::Result<()> {
    let declared = client
        .add_search_attributes([
            ("customer", AttributeType::Keyword),
            ("tags", AttributeType::Keywords),
            ("amount", AttributeType::Int),
            ("score", AttributeType::Float),
            ("late", AttributeType::Bool),
            ("stage", AttributeType::Keyword),
        ])
        .await?;
    assert_eq!(declared.len(), 6);
    Ok(())
}

fn reason<T>(result: Result<T, ClientError>) -> (String, String) {
    match result.err() {
        Some(ClientError::Refused { reason, message, .. }) => (reason, message),
        other => (String::new(), format!("{other:?}")),
    }
}

/// Run ids that a filter finds, page by page.
async fn found(client: &Client, attributes: Vec<AttributeFilter>) -> anyhow::Result<Vec<RunId>> {
    let filter = RunListFilter { attributes, page_size: 2, ..RunListFilter::default() };
    let (mut runs, mut token) = (Vec::new(), String::new());
    loop {
        let page = client.list(&filter, &token).await?;
        runs.extend(page.runs.iter().map(|run| run.run_id));
        token = page.next_page_token;
        if token.is_empty() {
            return Ok(runs);
        }
    }
}

async fn nothing(_: Ctx, (): ()) -> Result<(), WorkflowError> {
    Ok(())
}

#[tokio::test]
async fn runs_are_found_by_what_they_say_and_shown_with_it() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let node = node_on(&store.store).await?;
        let client = node.client()?;
        declare(&client).await?;
        let mut runs = Vec::new();
        for n in 0..5_i64 {
            let start = client.workflow::<()>("nothing").task_queue("nobody");
            let customer = if n % 2 == 0 { "acme" } else { "zeta" };
            let start = start.attribute("customer", customer).attribute("amount", n).attribute("score", 0.5);
            let start = start.attribute("tags", ["all", if n < 2 { "small" } else { "large" }]).memo("n", &n);
            runs.push(start.start(&()).await?.run_id().expect("it has one"));
        }
        runs.reverse();
        // Newest first by id; runs that were started in one millisecond come as their ids have it.
        let by = |pick: &[usize]| {
            let mut picked = pick.iter().map(|i| runs[*i]).collect::<Vec<_>>();
            picked.sort_unstable_by(|a, b| b.cmp(a));
            picked
        };
        assert_eq!(found(&client, vec![AttributeFilter::eq("customer", "acme")]).await?, by(&[0, 2, 4]));
        assert_eq!(found(&client, vec![AttributeFilter::eq("tags", "small")]).await?, by(&[3, 4]));
        assert_eq!(
            found(&client, vec![AttributeFilter::new("tags", Comparison::Ne, "small")]).await?,
            by(&[0, 1, 2])
        );
        let both =
            vec![AttributeFilter::eq("customer", "acme"), AttributeFilter::new("amount", Comparison::Ge, 2)];
        assert_eq!(found(&client, both).await?, by(&[0, 2]));
        let whole = AttributeFilter::new("score", Comparison::Lt, 1);
        assert_eq!(found(&client, vec![whole]).await?.len(), 5, "a whole number does for a number");
        assert!(found(&client, vec![AttributeFilter::eq("late", true)]).await?.is_empty());
        let shown = client.handle::<()>(runs[0]).describe().await?;
        assert_eq!(shown.search_attributes["amount"], Attribute::Int(4));
        assert_eq!(decode::<i64>(&shown.memo["n"])?, 4);
        // What makes no sense is refused, and says what would.
        let start = |name: &str, value: Attribute| client.workflow::<()>("nothing").attribute(name, value);
        let (word, message) = reason(start("custmer", Attribute::Keyword("x".into())).start(&()).await);
        assert_eq!(word, "ATTRIBUTE_NOT_DECLARED");
        assert!(message.contains("'customer'"), "{message}");
        let mismatch = start("amount", Attribute::Keyword("x".into())).start(&()).await;
        assert_eq!(reason(mismatch).0, "ATTRIBUTE_TYPE_MISMATCH");
        let list = async |filter| {
            let filter = RunListFilter { attributes: vec![filter], ..RunListFilter::default() };
            reason(client.list(&filter, "").await).0
        };
        assert_eq!(list(AttributeFilter::eq("none", 1)).await, "ATTRIBUTE_NOT_DECLARED");
        assert_eq!(list(AttributeFilter::eq("amount", "1")).await, "ATTRIBUTE_TYPE_MISMATCH");
        assert_eq!(list(AttributeFilter::new("late", Comparison::Gt, true)).await, "INVALID_FILTER");
        assert_eq!(list(AttributeFilter::new("tags", Comparison::Lt, "x")).await, "INVALID_FILTER");
        let other = client.add_search_attributes([("amount", AttributeType::Float)]).await;
        assert_eq!(reason(other).0, "ATTRIBUTE_TYPE_MISMATCH");
        let page = RunListFilter {
            attributes: vec![AttributeFilter::eq("customer", "acme")],
            page_size: 1,
            ..RunListFilter::default()
        };
        let token = client.list(&page, "").await?.next_page_token;
        let other = RunListFilter { attributes: vec![AttributeFilter::eq("customer", "zeta")], ..page };
        assert_eq!(
            reason(client.list(&other, &token).await).0,
            "INVALID_PAGE_TOKEN",
            "it is for its filters"
        );
    }
    Ok(())
}

/// Says something before and after it waits.
async fn staged(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    ctx.upsert(attributes! { "stage" => "packed", "amount" => 1 });
    let n = ctx.step("pack", || async { Ok::<_, StepError>(7) }).await?;
    ctx.upsert(Notes::new().memo("parcel", &n));
    let _: () = ctx.signal("go").await?;
    ctx.upsert(attributes! { "stage" => "shipped", "amount" => None::<i64> }.forget("parcel"));
    Ok(n)
}

#[tokio::test]
async fn what_was_said_is_recorded_once_whoever_dies() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let node = node_on(&store.store).await?;
        declare(&node.client()?).await?;
        let worker = RunningWorker::start(node.worker().register("staged", staged))?;
        let run = node.client()?.workflow::<u32>("staged").start(&()).await?;
        let id = run.run_id().expect("it has one");
        let mut history = run.history(0, true).await?;
        let mut upserts = 0;
        while upserts < 2 {
            let event = history.next().await?.expect("it goes on");
            upserts += u32::from(matches!(event.body, EventBody::AttributesUpserted { .. }));
        }
        let shown = run.describe().await?;
        assert_eq!(shown.search_attributes["stage"], Attribute::Keyword("packed".into()));
        assert_eq!(decode::<u32>(&shown.memo["parcel"])?, 7);
        let stage = |stage: &str| vec![AttributeFilter::eq("stage", stage)];
        assert_eq!(found(&node.client()?, stage("packed")).await?, [id]);
        // Worker and node are gone, without a goodbye.
        drop((worker, node));
        let node = node_on(&store.store).await?;
        let _worker = RunningWorker::start(node.worker().register("staged", staged))?;
        let run = node.client()?.handle::<u32>(id);
        run.signal("go", &()).await?;
        assert_eq!(run.result().await?, 7);
        let events = store.store.read_events(id, 0, 1_000).await?;
        let said = events.iter().filter(|e| matches!(e.body, EventBody::AttributesUpserted { .. })).count();
        assert_eq!(said, 3, "each once");
        let folded = Run::fold(id, &events)?.expect("it has begun");
        let tables = store.store.run_tables(id).await?.expect("it has a row");
        assert_eq!(tables.projection, folded.projection());
        assert_eq!(store.store.run_notes(id).await?, *folded.notes());
        assert!(folded.notes().memo.is_empty());
        assert_eq!(found(&node.client()?, stage("shipped")).await?, [id], "also when it is closed");
        assert!(found(&node.client()?, stage("packed")).await?.is_empty());
        let amount = AttributeFilter::new("amount", Comparison::Gt, 0);
        assert!(found(&node.client()?, vec![amount]).await?.is_empty(), "it was taken away");
    }
    Ok(())
}

async fn chained(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
    ctx.upsert(attributes! { "amount" => n });
    match n {
        0..2 => Err(ContinueAsNew::new(&(n + 1)).into()),
        _ => Err(WorkflowError::new("Flaky", "each time")),
    }
}

#[tokio::test]
async fn what_follows_a_run_keeps_what_it_said() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let node = node_on(&store.store).await?;
        let client = node.client()?;
        declare(&client).await?;
        let _worker = RunningWorker::start(node.worker().register("chained", chained))?;
        let soon = RetryPolicy {
            initial_interval: Duration::from_millis(20).into(),
            maximum_attempts: 2,
            ..RetryPolicy::default()
        };
        let start = client.workflow::<u32>("chained").attribute("customer", "acme").memo("note", &"vip");
        let run = start.retry(soon).start(&0).await?;
        assert!(run.result().await.is_err());
        let acme = vec![AttributeFilter::eq("customer", "acme")];
        let all = found(&client, acme).await?;
        assert_eq!(all.len(), 4, "each run of the chain is found: {all:?}");
        let last = client.handle::<u32>(all[0]).describe().await?;
        assert_eq!(last.search_attributes["amount"], Attribute::Int(2));
        assert_eq!(decode::<String>(&last.memo["note"])?, "vip");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_says_too_much_fails_and_says_so() -> anyhow::Result<()> {
    async fn talkative(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
        ctx.upsert(Notes::new().memo("all", &"x".repeat(300 * 1024)));
        Ok(())
    }
    let node = RunningNode::in_memory().await?;
    let _worker =
        RunningWorker::start(node.worker().register("talkative", talkative).register("nothing", nothing))?;
    let run = node.client()?.workflow::<()>("talkative").start(&()).await?;
    let Err(everstep::RunError::Ended { failure, .. }) = run.result().await else {
        anyhow::bail!("it fails")
    };
    assert_eq!((failure.kind.as_str(), failure.non_retryable), ("LimitExceeded", true));
    let start = node.client()?.workflow::<()>("nothing").memo("all", &"x".repeat(300 * 1024));
    assert_eq!(reason(start.start(&()).await).0, "LIMIT_EXCEEDED");
    Ok(())
}

/// What one node declares another one knows when it is needed, whatever it knew a moment ago.
#[tokio::test]
async fn a_declaration_holds_on_every_node_at_once() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let (a, b) = (node_on(&store.store).await?, node_on(&store.store).await?);
        let start = async |name: &str| {
            let client = b.client()?;
            anyhow::Ok(client.workflow::<()>("nothing").attribute(name, "x").start(&()).await)
        };
        assert_eq!(reason(start("first").await?).0, "ATTRIBUTE_NOT_DECLARED");
        a.client()?.add_search_attributes([("first", AttributeType::Keyword)]).await?;
        start("first").await??;
        assert_eq!(reason(start("second").await?).0, "ATTRIBUTE_NOT_DECLARED");
        a.client()?.add_search_attributes([("second", AttributeType::Keyword)]).await?;
        start("second").await??;
    }
    Ok(())
}
