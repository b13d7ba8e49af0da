//! A thousand children, twenty at a time, over workers that are lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use everstep::{Ctx, StepError, WorkerBuilder};
use everstep_core::EventBody;
use everstep_dispatch::InProcess;
use everstep_example_patterns::fanout::{ALBUM, Album, PICTURE, Studio, Summary, shrink, shrink_all};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use tokio::sync::Notify;

use crate::stores;

/// Makes every picture small but those that nobody can read: every hundredth.
#[derive(Default)]
struct Files {
    made: AtomicU32,
    /// Told when so many are made.
    third: Notify,
    all: u32,
}

impl Studio for Files {
    async fn shrink(&self, picture: u32) -> Result<u64, StepError> {
        if picture % 100 == 99 {
            return Err(StepError::new("Unreadable", format!("picture {picture}")).non_retryable());
        }
        if self.made.fetch_add(1, Ordering::SeqCst) == self.all / 3 {
            self.third.notify_one();
        }
        Ok(u64::from(picture))
    }
}

fn hosting(node: &RunningNode, files: &Arc<Files>) -> WorkerBuilder {
    let files = Arc::clone(files);
    let picture = move |ctx: Ctx, picture| shrink(ctx, Arc::clone(&files), picture);
    node.worker().register(ALBUM, shrink_all).register(PICTURE, picture)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_pictures_are_made_twenty_at_a_time() -> anyhow::Result<()> {
    for store in stores::all().await? {
        // One store is enough for the whole album.
        let pictures = if store.name == "sqlite" { 1_000 } else { 200 };
        let hints = Arc::new(InProcess::new());
        let node = RunningNode::start(Arc::clone(&store.store), hints, NodeSettings::default()).await?;
        let files = Arc::new(Files { all: pictures, ..Files::default() });
        let worker = RunningWorker::start(hosting(&node, &files))?;
        let run = node.client()?.workflow::<Summary>(ALBUM).start(&Album { pictures, at_once: 20 }).await?;
        files.third.notified().await;
        drop(worker);
        let _next = RunningWorker::start(hosting(&node, &files))?;
        let summary = run.result().await?;
        let failed: Vec<u32> = (0..pictures).filter(|picture| picture % 100 == 99).collect();
        let bytes = (0..pictures).filter(|picture| picture % 100 != 99).map(u64::from).sum();
        let made = pictures - u32::try_from(failed.len())?;
        assert_eq!(summary, Summary { made, bytes, failed }, "on {}", store.name);

        let (mut open, mut most, mut begun) = (0_u32, 0, 0);
        let mut history = run.history(0, false).await?;
        while let Some(event) = history.next().await? {
            match event.body {
                EventBody::ChildScheduled(_) => {
                    open += 1;
                    begun += 1;
                    most = most.max(open);
                }
                EventBody::ChildClosed(_) => open -= 1,
                _ => {}
            }
        }
        assert_eq!((begun, open, most), (pictures, 0, 20), "on {}", store.name);
    }
    Ok(())
}
