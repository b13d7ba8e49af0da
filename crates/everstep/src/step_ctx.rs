//! What the code of a queued step holds: the [`StepCtx`].

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use everstep_core::Payload;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};

use crate::machine::AttemptFuture;
use crate::{StepError, StepInfo, payload};

/// Longest text about how far an attempt is.
const DETAILS_BYTES_MAX: usize = 64 * 1024;

/// The code of a queued step, for any input.
pub(crate) type StepFn = Arc<dyn Fn(StepCtx, Payload) -> AttemptFuture + Send + Sync>;

/// An attempt of a queued step, as its code sees it. Cheap to clone.
#[derive(Clone)]
pub struct StepCtx {
    shared: Arc<Attempt>,
}

impl fmt::Debug for StepCtx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepCtx").field("info", &self.shared.info).finish_non_exhaustive()
    }
}

/// What the code of an attempt shares with whoever runs it.
struct Attempt {
    info: StepInfo,
    token: String,
    /// What an attempt before this one last said.
    before: Payload,
    /// What this one last said.
    details: Mutex<Option<Payload>>,
    said: Notify,
    canceled: watch::Sender<bool>,
    deferred: AtomicBool,
}

impl StepCtx {
    pub(crate) fn new(info: StepInfo, token: String, before: Payload) -> Self {
        Self {
            shared: Arc::new(Attempt {
                info,
                token,
                before,
                details: Mutex::default(),
                said: Notify::new(),
                canceled: watch::Sender::new(false),
                deferred: AtomicBool::new(false),
            }),
        }
    }

    /// The attempt. Its epoch is 0: what tells attempts apart is their number.
    pub fn info(&self) -> &StepInfo {
        &self.shared.info
    }

    /// Says how far the attempt is, and that it lives; see [`Queued::heartbeat`](crate::Queued::heartbeat). Call it as
    /// often as you like: only the newest is sent, and not too often. If the attempt is lost or fails, the next one gets
    /// it as [`last_heartbeat`](Self::last_heartbeat). At most 64 KiB of JSON; what is longer is not sent.
    pub fn heartbeat<D: Serialize + ?Sized>(&self, details: &D) {
        match payload::encode(details) {
            Ok(details) if details.data.len() <= DETAILS_BYTES_MAX => {
                *self.shared.details.lock().unwrap_or_else(PoisonError::into_inner) = Some(details);
                self.shared.said.notify_one();
            }
            Ok(details) => {
                let (step, size) = (&self.shared.info.name, details.data.len());
                tracing::warn!(step, size, "a heartbeat is larger than 64 KiB, and not sent");
            }
            Err(error) => {
                tracing::warn!(step = self.shared.info.name, %error, "a heartbeat does not encode, and is not sent");
            }
        }
    }

    /// How far an attempt before this one was, if it said so and it was a `D`.
    pub fn last_heartbeat<D: DeserializeOwned>(&self) -> Option<D> {
        if self.shared.before.is_none() {
            return None;
        }
        payload::decode(&self.shared.before).ok()
    }

    /// Waits until nobody wants the step any more. Return soon then: with a result, which still counts, or with
    /// [`StepCtx::stopped`].
    pub async fn canceled(&self) {
        // The sender lives in what this borrows.
        let _ = self.shared.canceled.subscribe().wait_for(|canceled| *canceled).await;
    }

    /// True once nobody wants the step any more.
    pub fn is_canceled(&self) -> bool {
        *self.shared.canceled.borrow()
    }

    /// The error of an attempt that stops because nobody wants the step any more, with what it leaves behind.
    pub fn stopped(&self, said: impl Into<String>) -> StepError {
        StepError::new(CANCELED, said).non_retryable()
    }

    /// Completes, fails or beats this attempt from anywhere: `everstep step complete TOKEN`, or the calls
    /// `CompleteStep`, `FailStep` and `HeartbeatStep` of the API.
    pub fn task_token(&self) -> String {
        self.shared.token.clone()
    }

    /// Return this as the attempt's error when somebody else will end it by its [`task_token`](Self::task_token). It
    /// takes no slot of the worker's any more, and is not lost with it; its times still run.
    ///
    /// ```
    /// # use everstep::{StepCtx, StepError, StepType};
    /// # struct Approve;
    /// # impl StepType for Approve {
    /// #     const NAME: &'static str = "approve";
    /// #     type Input = String;
    /// #     type Output = bool;
    /// # }
    /// # async fn send_mail(_: &str, _: &str) -> Result<(), std::io::Error> { Ok(()) }
    /// async fn approve(step: StepCtx, order: String) -> Result<bool, StepError> {
    ///     send_mail(&order, &step.task_token()).await?;
    ///     Err(step.complete_later())
    /// }
    /// ```
    pub fn complete_later(&self) -> StepError {
        self.shared.deferred.store(true, Ordering::Release);
        StepError::new("CompleteLater", "the attempt will be completed by its token")
    }

    /// Nobody wants the step any more.
    pub(crate) fn cancel(&self) {
        self.shared.canceled.send_replace(true);
    }

    pub(crate) fn is_deferred(&self) -> bool {
        self.shared.deferred.load(Ordering::Acquire)
    }

    /// What the attempt last said about how far it is.
    pub(crate) fn details(&self) -> Option<Payload> {
        self.shared.details.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the attempt says how far it is.
    pub(crate) async fn said(&self) {
        self.shared.said.notified().await;
    }
}

/// Failure kind of an attempt that stopped because it was asked to.
pub(crate) const CANCELED: &str = "Canceled";
