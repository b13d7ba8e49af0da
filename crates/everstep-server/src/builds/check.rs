//! Checks for one caller: of what is to be checked, what came of each, and the sums.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use everstep_core::{Event, EventBody, RunId, Seq};
use everstep_engine::{Candidate, CheckTarget, Checked, Engine, Error};
use everstep_proto::api::{self, check_histories_response::Verdict};
use everstep_proto::wire::encode_blocked;
use futures::StreamExt;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{files, sample};
use crate::check::Check;
use crate::{reason, status};

/// How long a caller may be silent before it says what it wants.
const FIRST_WAIT: Duration = Duration::from_secs(10);
/// How long a worker may take to say what came of one history. It counts the replay itself, which may take 30 s; the
/// rest is for the way there and for the histories that it replays before. So this is no verdict on the code.
const ANSWER_WAIT: Duration = Duration::from_secs(150);
/// Histories that are on their way at one time.
const AT_ONE_TIME: usize = 4;
const SAMPLE_MAX: u32 = 10_000;
const WORKFLOW_TYPES_MAX: usize = 1_000;
/// Events read from the store at one time.
const READ_EVENTS: usize = 1_000;

/// What a caller wants.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) namespace: String,
    pub(super) build_id: String,
    pub(super) sample: usize,
    pub(super) workflow_types: BTreeSet<String>,
    pub(super) open_only: bool,
}

/// One history to check.
pub(super) struct Subject {
    /// What a file is called; empty for a run of this deployment.
    pub(super) label: String,
    pub(super) run_id: RunId,
    pub(super) events: Arc<Vec<Event>>,
}

/// The first message of a caller.
pub(super) async fn first(
    inbound: &mut Streaming<api::CheckHistoriesRequest>,
) -> Result<api::CheckHistoriesRequest, Status> {
    let missing = || status::of(reason::INVALID_ARGUMENT, "the first message must say what is to be checked");
    let message = tokio::time::timeout(FIRST_WAIT, inbound.message()).await.map_err(|_| missing())?;
    message.map_err(|s| status::of_framework(&s).unwrap_or(s))?.ok_or_else(missing)
}

/// Reads what it says.
pub(super) fn plan(request: api::CheckHistoriesRequest) -> Result<Plan, Status> {
    let api::CheckHistoriesRequest {
        namespace,
        build_id,
        sample,
        workflow_types,
        open_only,
        label,
        data,
        last,
    } = request;
    let mut check = Check::default();
    let namespace = check.name_or_default("namespace", namespace);
    let build_id = check.text("build_id", build_id, everstep_core::limits::NAME_BYTES_MAX);
    if sample > SAMPLE_MAX {
        check.refuse("sample", reason::LIMIT_EXCEEDED, format!("must be at most {SAMPLE_MAX}"));
    }
    if workflow_types.len() > WORKFLOW_TYPES_MAX {
        let problem = format!("has more than {WORKFLOW_TYPES_MAX} entries");
        check.refuse("workflow_types", reason::LIMIT_EXCEEDED, problem);
    }
    let mut types = BTreeSet::new();
    for (i, name) in workflow_types.into_iter().take(WORKFLOW_TYPES_MAX).enumerate() {
        types.insert(check.name(format!("workflow_types[{i}]"), name));
    }
    for (field, given) in [("label", !label.is_empty()), ("data", !data.is_empty()), ("last", last)] {
        if given {
            check.refuse(field, reason::INVALID_ARGUMENT, "must not be in the first message");
        }
    }
    check.finish()?;
    Ok(Plan { namespace, build_id, sample: sample as usize, workflow_types: types, open_only })
}

/// Checks that go on.
pub(super) struct Checking {
    pub(super) engine: Engine,
    pub(super) plan: Plan,
    pub(super) candidate: Candidate,
    answers: mpsc::Sender<Result<api::CheckHistoriesResponse, Status>>,
}

impl Checking {
    /// Looks who is there, so that a caller hears at once that nobody is.
    pub(super) async fn begin(
        engine: &Engine,
        plan: Plan,
        answers: mpsc::Sender<Result<api::CheckHistoriesResponse, Status>>,
    ) -> Result<Self, Status> {
        let engine = engine.clone();
        let candidate = engine.candidate(&plan.namespace, &plan.build_id).await;
        let candidate = candidate.map_err(|e| status::of_engine(&e))?;
        Ok(Self { engine, plan, candidate, answers })
    }

    /// Checks everything, and says what came of it.
    pub(super) async fn run(&self, inbound: Streaming<api::CheckHistoriesRequest>) -> Result<(), Status> {
        let mut sum = api::CheckSummary::default();
        let (runs, lacking) = sample::runs(self).await?;
        for row in lacking {
            let why = format!("the build has no workflow type '{}'", row.workflow_type);
            let response = api::CheckHistoriesResponse {
                run_id: row.run_id.to_string(),
                workflow_type: row.workflow_type,
                recorded_build_id: row.build_id,
                verdict: Some(Verdict::Skipped(why)),
                ..api::CheckHistoriesResponse::default()
            };
            self.say(&mut sum, response).await?;
        }
        let mut results = futures::stream::iter(runs)
            .map(|run_id| async move {
                let events = Arc::new(self.read(run_id).await?);
                self.check(Subject { label: String::new(), run_id, events }).await
            })
            .buffered(AT_ONE_TIME);
        while let Some(result) = results.next().await {
            self.say(&mut sum, result?).await?;
        }
        let mut files = files::Files::new(inbound);
        while let Some(file) = files.next().await? {
            let response = self.check(file).await?;
            self.say(&mut sum, response).await?;
        }
        let summary = Some(Verdict::Summary(sum));
        let last = api::CheckHistoriesResponse { verdict: summary, ..api::CheckHistoriesResponse::default() };
        // Nobody is left to hear it, or it is heard.
        let _ = self.answers.send(Ok(last)).await;
        Ok(())
    }

    async fn say(
        &self,
        sum: &mut api::CheckSummary,
        response: api::CheckHistoriesResponse,
    ) -> Result<(), Status> {
        match &response.verdict {
            Some(Verdict::Passed(_)) => sum.passed += 1,
            Some(Verdict::Mismatch(_)) => sum.mismatched += 1,
            _ => sum.skipped += 1,
        }
        sum.checked = sum.passed + sum.mismatched;
        self.answers.send(Ok(response)).await.map_err(|_| status::stopping())
    }

    async fn read(&self, run_id: RunId) -> Result<Vec<Event>, Status> {
        let mut all: Vec<Event> = Vec::new();
        loop {
            let after = all.last().map_or(0, |event| event.seq);
            let page = self.engine.store().read_events(run_id, after, READ_EVENTS).await;
            let page = page.map_err(|e| status::of_store(&e))?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    async fn check(&self, subject: Subject) -> Result<api::CheckHistoriesResponse, Status> {
        let Subject { label, run_id, events } = subject;
        let mut response = api::CheckHistoriesResponse {
            label,
            run_id: run_id.to_string(),
            workflow_type: workflow_type(&events).to_owned(),
            events: events.len() as u64,
            recorded_build_id: last_build(&events).to_owned(),
            ..api::CheckHistoriesResponse::default()
        };
        let workflow_type = response.workflow_type.clone();
        if !self.candidate.workflow_types.contains(&workflow_type) {
            let why = format!("the build has no workflow type '{workflow_type}'");
            response.verdict = Some(Verdict::Skipped(why));
            return Ok(response);
        }
        let Plan { namespace, build_id, .. } = &self.plan;
        let (namespace, build_id) = (namespace.clone(), build_id.clone());
        let target = CheckTarget { namespace, build_id, workflow_type };
        let checked = self.engine.check(target, (run_id, Arc::clone(&events)), ANSWER_WAIT).await;
        let checked = checked.map_err(|error| match error {
            Error::NoAnswer => {
                let wait = ANSWER_WAIT.as_secs();
                let message = format!("the worker has not said within {wait} s what came of run {run_id}");
                status::of(reason::DEADLINE_EXCEEDED, message)
            }
            error => status::of_engine(&error),
        })?;
        response.verdict = Some(match checked {
            Checked::Passed => Verdict::Passed(api::Passed {}),
            Checked::Mismatch(blocked) => {
                response.event_kind = kind_of(&events, blocked.at_seq).to_owned();
                Verdict::Mismatch(encode_blocked(&blocked))
            }
            Checked::Skipped(why) => Verdict::Skipped(why),
        });
        Ok(response)
    }
}

fn workflow_type(events: &[Event]) -> &str {
    match events.first().map(|event| &event.body) {
        Some(EventBody::RunStarted(start)) => &start.workflow_type,
        _ => "",
    }
}

fn last_build(events: &[Event]) -> &str {
    let builds = events.iter().rev().filter_map(|event| match &event.body {
        EventBody::WorkerAttached { worker, .. } => Some(worker.build_id.as_str()),
        _ => None,
    });
    builds.into_iter().next().unwrap_or_default()
}

fn kind_of(events: &[Event], seq: Seq) -> &str {
    events.iter().find(|event| event.seq == seq).map_or("", |event| event.body.kind())
}
