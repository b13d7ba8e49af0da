//! Durable workflows in Rust.
//!
//! A *workflow* is an async function whose progress survives the crash of its process. It gets a [`Ctx`];
//! whatever touches the outside world goes into a *step*, whose result is recorded before the workflow
//! sees it. After a crash another worker replays the recorded history through the same function: recorded
//! steps return their recorded results at once, and the run goes on where it was.
//!
//! ```
//! use everstep::{Ctx, StepError, WorkflowError};
//! use std::time::Duration;
//!
//! async fn greet(ctx: Ctx, name: String) -> Result<String, WorkflowError> {
//!     let greeting = ctx
//!         .step("compose", move || {
//!             let name = name.clone();
//!             async move { Ok::<_, StepError>(format!("Hello, {name}!")) }
//!         })
//!         .timeout(Duration::from_secs(5))
//!         .await?;
//!     ctx.sleep(Duration::from_secs(24 * 3600)).await;
//!     Ok(greeting)
//! }
//! ```
//!
//! A [`Worker`] hosts workflows; a [`Client`] starts and steers runs:
//!
//! ```no_run
//! # use everstep::{Client, Ctx, Worker, WorkflowError};
//! # async fn greet(_: Ctx, name: String) -> Result<String, WorkflowError> { Ok(name) }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let worker = Worker::builder("http://127.0.0.1:7417").register("greet", greet).build()?;
//! tokio::spawn(worker.run());
//!
//! let client = Client::connect("http://127.0.0.1:7417")?;
//! let run = client.workflow::<String>("greet").workflow_id("greet/ada").start(&"Ada").await?;
//! println!("{}", run.result().await?);
//! # Ok(())
//! # }
//! ```
//!
//! # The rules for workflow code
//!
//! - Wait only for what comes from the [`Ctx`]: steps, sleeps, signals, and [`join!`], [`select!`],
//!   [`join_all`] and [`race`] over them. A tokio timer, channel or task handle would be gone after a crash;
//!   a workflow that waits for one is blocked with the line where that happened.
//! - Take time, randomness and ids from the [`Ctx`] ([`Ctx::now`], [`Ctx::random`], [`Ctx::uuid`]).
//! - A step may run more than once (its process may die before the result is recorded), so give its
//!   receiver the [`StepInfo::idempotency_key`].
//!
//! What is *not* here: storage, dispatch, and the decision what happens next, which is the server's.

pub mod client;
mod combine;
mod ctx;
mod error;
mod machine;
mod notes;
mod payload;
mod saga;
mod step_ctx;
pub mod testing;
mod trace;
pub mod worker;

pub use client::{Client, RunHandle};
pub use combine::{
    Buffered, Either, TimedOut, Timeout, Unordered, buffered, join_all, map_buffered, race, select2, timeout,
};
pub use ctx::{
    Canceled, Child, ChildFuture, ChildHandle, ContinueAsNew, Ctx, External, ExternalOp, InDoubt, Known,
    Probe, ProbeFn, ProbeFuture, QueryError, Queued, QueuedDoubt, Refused, RunInfo, Signal, Sleep, State,
    Step, StepInfo, StepType, Wait, step_info,
};
pub use error::{
    ChildError, ClientError, ExternalFailed, RunError, StepError, StepFailed, UpdateError, WorkerError,
    WorkflowError,
};
pub use everstep_core::{
    Attribute, AttributeType, Failure, ParentClose, Payload, RetryPolicy, ReusePolicy, RunId, RunStatus,
};
pub use machine::{AttemptFn, AttemptFuture, Machine, Obstacle, Work};
pub use notes::{IntoAttribute, Memo, Notes, SearchAttributes};
pub use payload::{decode, encode};
pub use saga::{Saga, SagaError, saga};
pub use step_ctx::StepCtx;
pub use worker::{Worker, WorkerBuilder, WorkerLimits};

#[doc(hidden)]
pub use combine::{poll_biased, poll_ready};
