//! What a child has from its parent, and how far down there may be children.

use everstep::client::{AttributeFilter, RunListFilter};
use everstep::{Attribute, AttributeType, ChildError, Ctx, WorkflowError};
use everstep_core::RunId;
use everstep_tests::cluster::RunningWorker;

use super::{node_on, quiet};
use crate::stores;

/// Starts a child that is found and shown by what is said here.
async fn labels(ctx: Ctx, (): ()) -> Result<RunId, WorkflowError> {
    let child = ctx.child::<u32>("double", 4).attribute("customer", "acme").memo("note", &"fragile");
    let child = child.start().await?;
    let run = child.run_id();
    child.result().await?;
    Ok(run)
}

/// Starts itself as its own child until that is refused.
async fn again(ctx: Ctx, runs: u32) -> Result<(u32, String), WorkflowError> {
    match ctx.child::<(u32, String)>("again", runs + 1).await {
        Err(ChildError::NotStarted(failure)) => Ok((runs + 1, failure.kind)),
        below => Ok(below?),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_is_found_by_what_its_parent_says_about_it() -> anyhow::Result<()> {
    for stores::TestStore { name, store, .. } in &stores::all().await? {
        let (node, _others) = node_on(store).await?;
        let client = node.client()?;
        client.add_search_attributes([("customer", AttributeType::Keyword)]).await?;
        let _worker = RunningWorker::start(node.worker().register("labels", labels))?;
        let child = client.workflow::<RunId>("labels").start(&()).await?.result().await?;
        let attributes = vec![AttributeFilter::eq("customer", "acme")];
        let found = client.list(&RunListFilter { attributes, ..RunListFilter::default() }, "").await?;
        let found: Vec<RunId> = found.runs.iter().map(|run| run.run_id).collect();
        assert_eq!(found, [child], "{name}");
        let shown = client.handle::<u32>(child).describe().await?;
        assert_eq!(shown.search_attributes["customer"], Attribute::Keyword("acme".to_owned()), "{name}");
        assert_eq!(everstep::decode::<String>(&shown.memo["note"])?, "fragile", "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_that_starts_itself_comes_to_an_end() -> anyhow::Result<()> {
    for stores::TestStore { name, store, .. } in &stores::all().await? {
        let (node, _others) = node_on(store).await?;
        let _worker = RunningWorker::start(node.worker().register("again", again))?;
        let run = node.client()?.workflow::<(u32, String)>("again").start(&0).await?;
        assert_eq!(run.result().await?, (65, "LimitExceeded".to_owned()), "{name}");
        quiet(store).await?;
    }
    Ok(())
}
