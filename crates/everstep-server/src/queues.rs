//! `QueueService`: what waits in task queues, and how fast they may be worked off.

use everstep_core::QueueKey;
use everstep_engine::Engine;
use everstep_proto::api::{self, queue_service_server::QueueService, waiting_type::Kind};
use everstep_proto::wire::encode_timestamp;
use everstep_store::{Change, QueueCensus, QueueLimits, QueueRecord, QueueWorker};
use tonic::{Request, Response, Status};

use crate::check::Check;
use crate::{administer, page, reason, status};

/// More attempts than this at once after a quiet time are refused.
const BURST_MAX: u32 = 1_000_000;

/// Workers that an answer names.
const WORKERS_MAX: usize = 1_000;
/// Workers, and types of what waits, that are looked at.
const CENSUS_MAX: usize = 10_000;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct QueueApi {
    pub(crate) engine: Engine,
}

impl QueueApi {
    async fn known(&self, namespace: &str) -> Result<(), Status> {
        let known = self.engine.store().get_namespace(namespace).await.map_err(|e| status::of_store(&e))?;
        known.map(|_| ()).ok_or_else(|| status::namespace_not_found(namespace))
    }
}

#[tonic::async_trait]
impl QueueService for QueueApi {
    async fn get_queue(
        &self,
        request: Request<api::GetQueueRequest>,
    ) -> Result<Response<api::GetQueueResponse>, Status> {
        let api::GetQueueRequest { namespace, task_queue } = request.into_inner();
        let mut check = Check::default();
        let key = key(&mut check, namespace, task_queue);
        check.finish()?;
        self.known(&key.namespace).await?;
        let store = self.engine.store();
        let record = store.queue(&key).await.map_err(|e| status::of_store(&e))?;
        let census = store.queue_census(&key, CENSUS_MAX).await.map_err(|e| status::of_store(&e))?;
        let types_without_worker = without_worker(&census, &key.task_queue);
        let workers = census.workers.into_iter().take(WORKERS_MAX);
        let workers = workers.map(|worker| encode_worker(worker, &key.task_queue)).collect();
        Ok(Response::new(api::GetQueueResponse {
            queue: Some(encode(record)),
            workers,
            types_without_worker,
        }))
    }

    async fn list_queues(
        &self,
        request: Request<api::ListQueuesRequest>,
    ) -> Result<Response<api::ListQueuesResponse>, Status> {
        let api::ListQueuesRequest { namespace, page_size, page_token } = request.into_inner();
        let mut check = Check::default();
        let namespace = check.name_or_default("namespace", namespace);
        let size = check.page_size(page_size);
        check.finish()?;
        let after = page::queues_page(&namespace, &page_token)?;
        let store = self.engine.store();
        // One more than asked for tells whether there is another page.
        let mut found = store.queues(&namespace, &after, size + 1).await.map_err(|e| status::of_store(&e))?;
        if found.is_empty() && after.is_empty() {
            self.known(&namespace).await?;
        }
        let more = found.len() > size;
        found.truncate(size);
        let next_page_token = match found.last() {
            Some(last) if more => page::queues_token(&namespace, &last.task_queue),
            _ => String::new(),
        };
        let queues = found.into_iter().map(encode).collect();
        Ok(Response::new(api::ListQueuesResponse { queues, next_page_token }))
    }

    async fn set_queue_limits(
        &self,
        request: Request<api::SetQueueLimitsRequest>,
    ) -> Result<Response<api::SetQueueLimitsResponse>, Status> {
        let mut wire = request.into_inner();
        let mut check = Check::default();
        let request_id = check.request_id(std::mem::take(&mut wire.request_id));
        let identity = check.identity("identity", std::mem::take(&mut wire.identity));
        let request = administer::request(&request_id, &wire);
        let api::SetQueueLimitsRequest { namespace, task_queue, limits, request_id: _, identity: _ } = wire;
        let key = key(&mut check, namespace, task_queue);
        let limits = read_limits(&mut check, limits.unwrap_or_default());
        check.finish()?;
        let change = Change::SetQueueLimits { queue: key.clone(), limits };
        administer::make(&self.engine, change, request).await?;
        tracing::info!(queue = key.task_queue, request_id, identity, ?limits, "limits of a queue set");
        Ok(Response::new(api::SetQueueLimitsResponse { limits: Some(encode_limits(limits)) }))
    }
}

fn key(check: &mut Check, namespace: String, task_queue: String) -> QueueKey {
    QueueKey {
        namespace: check.name_or_default("namespace", namespace),
        task_queue: check.name("task_queue", task_queue),
    }
}

fn read_limits(check: &mut Check, wire: api::QueueLimits) -> QueueLimits {
    let api::QueueLimits { max_running, max_per_second, burst } = wire;
    if !max_per_second.is_finite() || max_per_second < 0.0 {
        let problem = "must be a positive number, or 0 for no limit";
        check.refuse("limits.max_per_second", reason::INVALID_ARGUMENT, problem);
    }
    if burst > BURST_MAX {
        check.refuse("limits.burst", reason::INVALID_ARGUMENT, format!("must be 0 to {BURST_MAX}"));
    }
    QueueLimits {
        max_running: (max_running > 0).then_some(max_running),
        max_per_second: (max_per_second > 0.0).then_some(max_per_second),
        burst: burst.max(1),
    }
}

fn encode_limits(limits: QueueLimits) -> api::QueueLimits {
    let QueueLimits { max_running, max_per_second, burst } = limits;
    api::QueueLimits {
        max_running: max_running.unwrap_or_default(),
        max_per_second: max_per_second.unwrap_or_default(),
        burst,
    }
}

fn encode_worker(worker: QueueWorker, task_queue: &str) -> api::QueueWorker {
    let QueueWorker { session, identity, build_id, serves } = worker;
    let has = |queues: &[String]| queues.iter().any(|queue| queue == task_queue);
    let steps = serves.steps.filter(|steps| has(&steps.task_queues));
    api::QueueWorker {
        session_id: session.to_string(),
        identity,
        build_id,
        run_slots: if has(&serves.task_queues) { serves.run_slots } else { 0 },
        step_slots: steps.map_or(0, |steps| steps.slots),
    }
}

/// What waits for somebody who is not there.
fn without_worker(census: &QueueCensus, task_queue: &str) -> Vec<api::WaitingType> {
    let runs = census.runs_without_worker(task_queue).into_iter().map(|waits| api::WaitingType {
        kind: Some(Kind::WorkflowType(waits.name.clone())),
        waiting: waits.waiting,
    });
    let steps = census
        .steps_without_worker(task_queue)
        .into_iter()
        .map(|waits| api::WaitingType { kind: Some(Kind::Step(waits.name.clone())), waiting: waits.waiting });
    runs.chain(steps).collect()
}

fn encode(record: QueueRecord) -> api::Queue {
    let QueueRecord { task_queue, limits, waiting, running, later, oldest_waiting, runs_waiting } = record;
    api::Queue {
        task_queue,
        limits: Some(encode_limits(limits)),
        steps_waiting: waiting,
        steps_running: running,
        steps_later: later,
        oldest_waiting: oldest_waiting.map(encode_timestamp),
        runs_waiting,
    }
}
