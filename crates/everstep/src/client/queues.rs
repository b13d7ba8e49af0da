//! Task queues and the queued steps in them, from the outside.

use everstep_core::{RunId, SessionId, Timestamp};
use everstep_proto::api::queue_service_client::QueueServiceClient;
use everstep_proto::api::{self, StepState, waiting_type::Kind};
use everstep_proto::wire;
use serde::Serialize;
use tonic::transport::Channel;

use super::call::retrying;
use super::{ANSWER_BYTES_MAX, Client, new_request_id};
use crate::{ClientError, Failure, payload};

/// How fast a queue's steps may be run, on all workers together. The default is no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueueLimits {
    /// Attempts that run at one time; 0 for no limit.
    pub max_running: u32,
    /// Attempts that begin in a second; 0 for no limit.
    pub max_per_second: f64,
    /// Attempts that may begin at once after a quiet time.
    pub burst: u32,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { max_running: 0, max_per_second: 0.0, burst: 1 }
    }
}

impl QueueLimits {
    fn decode(limits: Option<api::QueueLimits>) -> Self {
        let api::QueueLimits { max_running, max_per_second, burst } = limits.unwrap_or_default();
        Self { max_running, max_per_second, burst }
    }
}

/// A task queue as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueDescription {
    /// Its name.
    pub task_queue: String,
    /// What may run.
    pub limits: QueueLimits,
    /// Queued steps whose attempt may begin now.
    pub steps_waiting: u64,
    /// Queued steps whose attempt runs, or will be completed by its token.
    pub steps_running: u64,
    /// Queued steps that wait for their next attempt's instant, or for a person.
    pub steps_later: u64,
    /// Since when the step waits that waits longest.
    pub oldest_waiting: Option<Timestamp>,
    /// Runs that wait for a worker.
    pub runs_waiting: u64,
    /// Connected workers that serve it, at most 1000. Only [`Client::queue`] looks for them.
    pub workers: Vec<QueueWorker>,
    /// What waits in it, and none of its workers has. Only [`Client::queue`] looks for it.
    pub types_without_worker: Vec<WaitingType>,
}

/// A connected worker that serves a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueWorker {
    /// Its session.
    pub session: SessionId,
    /// Which worker.
    pub identity: String,
    /// Which code it runs.
    pub build_id: String,
    /// Runs that it holds at one time, of all its queues together; 0 when it takes none from this queue.
    pub run_slots: u32,
    /// Attempts of queued steps that it ran at one time when it connected; 0 when it takes none.
    pub step_slots: u32,
}

/// What a queue lacks a worker for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingType {
    /// The workflow type, or the step's name.
    pub name: String,
    /// Queued steps wait, and not runs.
    pub is_step: bool,
    /// How many.
    pub waiting: u64,
}

impl QueueWorker {
    fn decode(worker: api::QueueWorker) -> Result<Self, ClientError> {
        let api::QueueWorker { session_id, identity, build_id, run_slots, step_slots } = worker;
        let session = wire::parse_id("session_id", &session_id).map_err(protocol)?;
        Ok(Self { session, identity, build_id, run_slots, step_slots })
    }
}

impl WaitingType {
    /// One of a kind that a newer server knows is left out.
    fn decode(waits: api::WaitingType) -> Option<Self> {
        let api::WaitingType { kind, waiting } = waits;
        let (name, is_step) = match kind? {
            Kind::WorkflowType(name) => (name, false),
            Kind::Step(name) => (name, true),
        };
        Some(Self { name, is_step, waiting })
    }
}

impl QueueDescription {
    fn decode(queue: api::Queue) -> Result<Self, ClientError> {
        let api::Queue {
            task_queue,
            limits,
            steps_waiting,
            steps_running,
            steps_later,
            oldest_waiting,
            runs_waiting,
        } = queue;
        let oldest = oldest_waiting.map(|at| wire::decode_timestamp("oldest_waiting", at)).transpose();
        Ok(Self {
            task_queue,
            limits: QueueLimits::decode(limits),
            steps_waiting,
            steps_running,
            steps_later,
            oldest_waiting: oldest.map_err(protocol)?,
            runs_waiting,
            workers: Vec::new(),
            types_without_worker: Vec::new(),
        })
    }
}

/// Queues.
#[derive(Clone, Debug)]
pub struct QueuePage {
    /// The queues, by name.
    pub queues: Vec<QueueDescription>,
    /// What gives the next page; empty on the last one.
    pub next_page_token: String,
}

/// A queued step that has not ended, and is not in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedStep {
    /// The run.
    pub run_id: RunId,
    /// The caller's business key.
    pub workflow_id: String,
    /// Queue whose workers run it.
    pub task_queue: String,
    /// The step's number within the run.
    pub step_id: u32,
    /// Its name.
    pub name: String,
    /// The attempt that waits or runs.
    pub attempt: u32,
    /// Somebody has the attempt.
    pub running: bool,
    /// 1 is served first, 5 last.
    pub priority: u32,
    /// Since when it stands so; of a waiting one, from when on it may begin.
    pub since: Option<Timestamp>,
    /// Who runs the attempt; `None` too when it will be completed by its token.
    pub session: Option<SessionId>,
    /// When the attempt last said how far it is.
    pub last_heartbeat_at: Option<Timestamp>,
    /// The workflow does not want it any more.
    pub cancel_requested: bool,
}

impl QueuedStep {
    fn decode(step: api::Step) -> Result<Self, ClientError> {
        let at = |field, at: Option<_>| {
            at.map(|at| wire::decode_timestamp(field, at)).transpose().map_err(protocol)
        };
        let session = match step.session_id.as_str() {
            "" => None,
            text => Some(wire::parse_id("session_id", text).map_err(protocol)?),
        };
        Ok(Self {
            run_id: wire::parse_id("run_id", &step.run_id).map_err(protocol)?,
            running: step.state() == StepState::Running,
            workflow_id: step.workflow_id,
            task_queue: step.task_queue,
            step_id: step.step_id,
            name: step.name,
            attempt: step.attempt,
            priority: step.priority,
            since: at("since", step.since)?,
            session,
            last_heartbeat_at: at("last_heartbeat_at", step.last_heartbeat_at)?,
            cancel_requested: step.cancel_requested,
        })
    }
}

/// Queued steps.
#[derive(Clone, Debug)]
pub struct QueuedStepPage {
    /// The steps, those of the oldest runs first.
    pub steps: Vec<QueuedStep>,
    /// What gives the next page; empty on the last one.
    pub next_page_token: String,
}

fn protocol(error: everstep_proto::InvalidMessage) -> ClientError {
    ClientError::Protocol(error.to_string())
}

impl Client {
    fn queues_service(&self) -> QueueServiceClient<Channel> {
        QueueServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// A queue as it stands, with who serves it and what waits in vain.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn queue(&self, task_queue: &str) -> Result<QueueDescription, ClientError> {
        let request =
            api::GetQueueRequest { namespace: self.namespace.clone(), task_queue: task_queue.to_owned() };
        let found = retrying(|| {
            let (mut queues, request) = (self.queues_service(), request.clone());
            async move { queues.get_queue(request).await }
        })
        .await?;
        let api::GetQueueResponse { queue, workers, types_without_worker } = found;
        let queue = QueueDescription::decode(queue.unwrap_or_default())?;
        Ok(QueueDescription {
            workers: workers.into_iter().map(QueueWorker::decode).collect::<Result<_, _>>()?,
            types_without_worker: types_without_worker.into_iter().filter_map(WaitingType::decode).collect(),
            ..queue
        })
    }

    /// One page of queues in which something waits or runs, or that have a limit; give the token of the page before,
    /// or an empty one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn queues(&self, page_size: i32, page_token: &str) -> Result<QueuePage, ClientError> {
        let request = api::ListQueuesRequest {
            namespace: self.namespace.clone(),
            page_size,
            page_token: page_token.to_owned(),
        };
        let page = retrying(|| {
            let (mut queues, request) = (self.queues_service(), request.clone());
            async move { queues.list_queues(request).await }
        })
        .await?;
        let queues = page.queues.into_iter().map(QueueDescription::decode).collect::<Result<_, _>>()?;
        Ok(QueuePage { queues, next_page_token: page.next_page_token })
    }

    /// Sets how fast a queue's steps may be run from here on, and gives what is set. Attempts that run go on.
    ///
    /// ```no_run
    /// # use everstep::{Client, client::QueueLimits};
    /// # async fn example(client: Client) -> Result<(), everstep::ClientError> {
    /// let limits = QueueLimits { max_per_second: 5.0, burst: 10, ..QueueLimits::default() };
    /// client.set_queue_limits("mails", limits).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_queue_limits(
        &self,
        task_queue: &str,
        limits: QueueLimits,
    ) -> Result<QueueLimits, ClientError> {
        let QueueLimits { max_running, max_per_second, burst } = limits;
        let request = api::SetQueueLimitsRequest {
            namespace: self.namespace.clone(),
            task_queue: task_queue.to_owned(),
            limits: Some(api::QueueLimits { max_running, max_per_second, burst }),
            request_id: new_request_id(),
            identity: self.identity_text(),
        };
        let set = retrying(|| {
            let (mut queues, request) = (self.queues_service(), request.clone());
            async move { queues.set_queue_limits(request).await }
        })
        .await?;
        Ok(QueueLimits::decode(set.limits))
    }

    /// One page of queued steps that wait or run, of all runs or of one; give the token of the page before, or an
    /// empty one. Those in doubt are listed by [`steps_in_doubt`](Self::steps_in_doubt).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn queued_steps(
        &self,
        run_id: Option<RunId>,
        page_size: i32,
        page_token: &str,
    ) -> Result<QueuedStepPage, ClientError> {
        let request = api::ListStepsRequest {
            namespace: self.namespace.clone(),
            state: StepState::Unspecified.into(),
            task_queue: String::new(),
            run_id: run_id.map(|run| run.to_string()).unwrap_or_default(),
            page_size,
            page_token: page_token.to_owned(),
        };
        let page = retrying(|| {
            let (mut steps, request) = (self.steps(), request.clone());
            async move { steps.list_steps(request).await }
        })
        .await?;
        let queued = page.steps.into_iter().filter(|step| step.state() != StepState::InDoubt);
        let steps = queued.map(QueuedStep::decode).collect::<Result<_, _>>()?;
        Ok(QueuedStepPage { steps, next_page_token: page.next_page_token })
    }

    /// Ends an attempt of a queued step well, by its [`task_token`](crate::StepCtx::task_token).
    ///
    /// ```no_run
    /// # async fn example(client: everstep::Client, token: String) -> Result<(), everstep::ClientError> {
    /// client.complete_step(&token, &true).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`], with reason `STALE_ATTEMPT` when the attempt is over, `RESULT_CONFLICT` when it ended in
    /// another way, and `TASK_TOKEN_INVALID`.
    pub async fn complete_step<T: Serialize + ?Sized>(
        &self,
        task_token: &str,
        result: &T,
    ) -> Result<(), ClientError> {
        let result = payload::encode(result).map_err(|e| ClientError::Payload(e.to_string()))?;
        let request = api::CompleteStepRequest {
            task_token: task_token.to_owned(),
            result: Some(wire::encode_payload(&result)),
            request_id: new_request_id(),
            identity: self.identity_text(),
        };
        retrying(|| {
            let (mut steps, request) = (self.steps(), request.clone());
            async move { steps.complete_step(request).await }
        })
        .await?;
        Ok(())
    }

    /// Ends an attempt of a queued step as failed, by its [`task_token`](crate::StepCtx::task_token); the step's retry
    /// policy decides what follows.
    ///
    /// # Errors
    /// As [`complete_step`](Self::complete_step).
    pub async fn fail_step(&self, task_token: &str, failure: &Failure) -> Result<(), ClientError> {
        let request = api::FailStepRequest {
            task_token: task_token.to_owned(),
            failure: Some(wire::encode_failure(failure)),
            request_id: new_request_id(),
            identity: self.identity_text(),
        };
        retrying(|| {
            let (mut steps, request) = (self.steps(), request.clone());
            async move { steps.fail_step(request).await }
        })
        .await?;
        Ok(())
    }

    /// Says how far an attempt of a queued step is, by its [`task_token`](crate::StepCtx::task_token). True when the
    /// workflow does not want the step any more.
    ///
    /// # Errors
    /// [`ClientError`], with reason `STALE_ATTEMPT` when the attempt is over, and `TASK_TOKEN_INVALID`.
    pub async fn heartbeat_step<D: Serialize + ?Sized>(
        &self,
        task_token: &str,
        details: &D,
    ) -> Result<bool, ClientError> {
        let details = payload::encode(details).map_err(|e| ClientError::Payload(e.to_string()))?;
        let request = api::HeartbeatStepRequest {
            task_token: task_token.to_owned(),
            details: Some(wire::encode_payload(&details)),
        };
        let heard = retrying(|| {
            let (mut steps, request) = (self.steps(), request.clone());
            async move { steps.heartbeat_step(request).await }
        })
        .await?;
        Ok(heard.cancel_requested)
    }
}
