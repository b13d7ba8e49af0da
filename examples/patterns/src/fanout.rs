//! A thousand pictures, each made smaller by a child of its own, and at most twenty of them at one time.
//!
//! A child is a run: it has its own history, retries and worker, it can be looked at and stopped alone, and what it
//! does is no part of its parent's history. There two events stand for it, however much it does. A child that fails
//! does not fail its parent: that is up to the code here.

use std::sync::Arc;

use everstep::{ChildError, Ctx, RetryPolicy, StepError, WorkflowError, buffered};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The name under which a worker registers [`shrink_all`].
pub const ALBUM: &str = "album";
/// The name under which a worker registers [`shrink`].
pub const PICTURE: &str = "picture";

/// What is to be made smaller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Album {
    /// Pictures, numbered from 0.
    pub pictures: u32,
    /// How many of them at one time.
    pub at_once: usize,
}

/// What became of an album.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Pictures that were made smaller.
    pub made: u32,
    /// Their bytes in all.
    pub bytes: u64,
    /// Pictures that could not be.
    pub failed: Vec<u32>,
}

/// Makes pictures smaller.
pub trait Studio: Send + Sync + 'static {
    /// Gives the bytes of the small one.
    fn shrink(&self, picture: u32) -> impl Future<Output = Result<u64, StepError>> + Send;
}

/// Has every picture of an album made smaller.
///
/// # Errors
/// When a child could not be started, or was stopped from outside.
pub async fn shrink_all(ctx: Ctx, album: Album) -> Result<Summary, WorkflowError> {
    let numbered = |picture| {
        let child = ctx.child::<u64>(PICTURE, picture);
        async move { (picture, child.await) }
    };
    // Each child is built when a place is free for it.
    let mut running = buffered((0..album.pictures).map(numbered), album.at_once);
    let mut summary = Summary::default();
    while let Some((picture, ended)) = running.next().await {
        match ended {
            Ok(bytes) => {
                summary.made += 1;
                summary.bytes += bytes;
            }
            Err(ChildError::Ended { failure, .. }) if failure.kind == "Unreadable" => {
                summary.failed.push(picture)
            }
            Err(other) => return Err(other.into()),
        }
    }
    summary.failed.sort_unstable();
    Ok(summary)
}

/// Makes one picture smaller: the child.
///
/// # Errors
/// When three attempts have failed.
pub async fn shrink<S: Studio>(ctx: Ctx, studio: Arc<S>, picture: u32) -> Result<u64, WorkflowError> {
    let shrink = move || {
        let studio = Arc::clone(&studio);
        async move { studio.shrink(picture).await }
    };
    let policy = RetryPolicy { maximum_attempts: 3, ..RetryPolicy::default() };
    Ok(ctx.step("shrink", shrink).retry(policy).await?)
}
