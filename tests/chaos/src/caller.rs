//! One sequential client: an op is one request with a deadline, and nobody repeats it behind its back.
//!
//! The `everstep` client repeats a call by itself and gives signals an id of its own, which would hide what is to
//! be seen here; so this speaks the API's own messages.

use std::time::Duration;

use everstep_checker::format::{EntryKind, HistoryEntry, OpKind};
use everstep_proto::api::run_service_client::RunServiceClient;
use everstep_proto::api::step_service_client::StepServiceClient;
use everstep_proto::{api, history, wire};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tonic_types::StatusExt as _;

use crate::history::{History, Reply};
use crate::requests::{self, InDoubt, Said};

/// Reasons behind which the request may have been carried out.
const UNDECIDED: [&str; 4] = ["OUTCOME_UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "STORE_CORRUPT"];
/// The longest of the polls that make up a wait for a result.
const POLL: Duration = Duration::from_millis(1_500);
/// How much longer than the call's own deadline an answer is waited for.
const SLACK: Duration = Duration::from_millis(500);

/// What is asked of one run.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// The workflow id.
    pub workflow_id: String,
    /// The run, once known.
    pub run_id: Option<String>,
    /// Makes the request safe to repeat.
    pub request_id: Option<String>,
    /// The signal's name, or the workflow's type.
    pub name: String,
    /// What it carries, for the checker.
    pub nonce: Option<String>,
    /// Input of a start or of a signal.
    pub input: Value,
    /// The name of the signal that a start brings along.
    pub signal: String,
    /// Input of an update, or of what a start brings along.
    pub brought: Value,
    /// What is said about a step in doubt.
    pub resolves: Option<(InDoubt, Said)>,
    /// How long `Result` waits at the server.
    pub wait: Duration,
}

/// A client process of a case.
#[derive(Debug)]
pub struct Caller {
    process: u32,
    index: u64,
    servers: Vec<Channel>,
    at: usize,
    deadline: Duration,
    history: History,
}

impl Caller {
    /// A client of the servers at `addresses`, of which it asks the first until that does not answer.
    ///
    /// # Errors
    /// When an address is none.
    pub fn new(process: u32, addresses: &[String], history: History) -> anyhow::Result<Self> {
        let connect = |address: &String| -> anyhow::Result<Channel> {
            let endpoint = Endpoint::from_shared(address.clone())?;
            let endpoint = endpoint.tcp_nodelay(true).connect_timeout(Duration::from_secs(2));
            // A link that swallows everything must not hold a connection for ever.
            let endpoint = endpoint
                .http2_keep_alive_interval(Duration::from_secs(2))
                .keep_alive_timeout(Duration::from_secs(2));
            Ok(endpoint.connect_lazy())
        };
        let servers = addresses.iter().map(connect).collect::<Result<_, _>>()?;
        Ok(Self { process, index: 0, servers, at: 0, deadline: Duration::from_secs(3), history })
    }

    /// The longest that one op takes from now on.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Asks the next server from now on.
    pub fn turn(&mut self) {
        self.at = (self.at + 1) % self.servers.len().max(1);
    }

    /// Sends one request and writes down what was asked and what came.
    ///
    /// # Errors
    /// When the history cannot be written.
    pub async fn op(&mut self, op: OpKind, ask: &Ask) -> anyhow::Result<Reply> {
        self.index += 1;
        let entry = HistoryEntry {
            process: self.process,
            index: self.index,
            op,
            workflow_id: ask.workflow_id.clone(),
            run_id: ask.run_id.clone(),
            request_id: ask.request_id.clone(),
            signal: match op {
                OpKind::Signal => Some(ask.name.clone()),
                OpKind::SignalWithStart => Some(ask.signal.clone()),
                _ => None,
            },
            nonce: ask.nonce.clone(),
            ..HistoryEntry::default()
        };
        self.history.write(entry.clone())?;
        let limit = self.deadline + ask.wait;
        let reply = match tokio::time::timeout(limit + SLACK, self.send(op, ask, limit)).await {
            Ok(reply) => reply,
            Err(_) => Reply::Unknown("no answer".to_owned()),
        };
        let mut entry = entry;
        (entry.kind, entry.error, entry.value) = match &reply {
            Reply::Ok(value) => (EntryKind::Ok, None, value.clone()),
            Reply::Fail(reason, text) => (EntryKind::Fail, Some(format!("{reason}: {text}")), None),
            Reply::Unknown(text) => (EntryKind::Unknown, Some(text.clone()), None),
        };
        let run = entry.value.as_ref().and_then(|v| v["run_id"].as_str());
        if let Some(run) = run.filter(|_| op.starts()) {
            entry.run_id = Some(run.to_owned());
        }
        self.history.write(entry)?;
        Ok(reply)
    }

    async fn send(&self, op: OpKind, ask: &Ask, limit: Duration) -> Reply {
        let Some(channel) = self.servers.get(self.at).cloned() else {
            return Reply::Unknown("no server".to_owned());
        };
        let mut runs = RunServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let answered = match op {
            OpKind::Start => runs.start_run(timed(start(ask, self.process), limit)).await.map(started),
            OpKind::Signal => runs.signal_run(timed(signal(ask, self.process), limit)).await.map(done),
            OpKind::Cancel => runs.cancel_run(timed(cancel(ask, self.process), limit)).await.map(done),
            OpKind::Terminate => {
                runs.terminate_run(timed(terminate(ask, self.process), limit)).await.map(done)
            }
            OpKind::Describe => {
                let request = api::GetRunRequest { run: Some(run(ask)) };
                runs.get_run(timed(request, limit)).await.map(described)
            }
            OpKind::Result => return self.wait_for_end(runs, ask, limit).await,
            OpKind::Update => runs
                .update_run(timed(requests::update(ask, self.process, limit * 3 / 4), limit))
                .await
                .map(requests::updated),
            OpKind::UpdateWithStart => {
                let request = requests::update_with_start(ask, self.process, limit * 3 / 4);
                runs.update_with_start_run(timed(request, limit)).await.map(requests::updated_with_start)
            }
            OpKind::SignalWithStart => {
                let request = requests::signal_with_start(ask, self.process);
                runs.signal_with_start_run(timed(request, limit)).await.map(requests::signaled_with_start)
            }
            OpKind::Resolve => {
                let Some(request) = requests::resolve(ask, self.process) else {
                    return Reply::Unknown("nothing to resolve".to_owned());
                };
                let mut steps = StepServiceClient::new(channel);
                steps.resolve_step(timed(request, limit)).await.map(done)
            }
        };
        answered.map_or_else(|status| refused(&status), Reply::Ok)
    }

    /// Whether a run is open, and its steps that wait for a person. Nothing of it is written down; `None` without an
    /// answer.
    pub async fn doubts(&self, ask: &Ask) -> Option<(bool, Vec<InDoubt>)> {
        let channel = self.servers.get(self.at).cloned()?;
        let mut runs = RunServiceClient::new(channel);
        let request = timed(api::GetRunRequest { run: Some(run(ask)) }, self.deadline);
        let asked = tokio::time::timeout(self.deadline + SLACK, runs.get_run(request));
        asked.await.ok().and_then(Result::ok).and_then(requests::doubts)
    }

    /// Long polls, one behind the other, until the run has ended. One that is open at the end of the wait has
    /// given no answer.
    async fn wait_for_end(&self, mut runs: RunServiceClient<Channel>, ask: &Ask, limit: Duration) -> Reply {
        let until = tokio::time::Instant::now() + ask.wait;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let wait = Some(wire::encode_duration(left.min(POLL).into()));
            let request = api::GetResultRequest { run: Some(run(ask)), wait };
            match runs.get_result(timed(request, limit)).await.map(result) {
                Ok(Some(value)) => return Reply::Ok(Some(value)),
                Ok(None) if left.is_zero() => return Reply::Unknown("still open".to_owned()),
                Ok(None) => {}
                Err(status) => return refused(&status),
            }
        }
    }
}

fn timed<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

pub(crate) fn payload(value: &Value) -> Option<history::Payload> {
    everstep::encode(value).ok().map(|payload| wire::encode_payload(&payload))
}

pub(crate) fn run(ask: &Ask) -> api::RunRef {
    api::RunRef {
        namespace: String::new(),
        run_id: ask.run_id.clone().unwrap_or_default(),
        workflow_id: if ask.run_id.is_some() { String::new() } else { ask.workflow_id.clone() },
    }
}

pub(crate) fn start(ask: &Ask, process: u32) -> api::StartRunRequest {
    api::StartRunRequest {
        workflow_id: ask.workflow_id.clone(),
        workflow_type: ask.name.clone(),
        input: payload(&ask.input),
        request_id: ask.request_id.clone().unwrap_or_default(),
        identity: format!("client-{process}"),
        ..api::StartRunRequest::default()
    }
}

fn signal(ask: &Ask, process: u32) -> api::SignalRunRequest {
    api::SignalRunRequest {
        run: Some(run(ask)),
        name: ask.name.clone(),
        input: payload(&ask.input),
        request_id: ask.request_id.clone().unwrap_or_default(),
        identity: format!("client-{process}"),
    }
}

fn cancel(ask: &Ask, process: u32) -> api::CancelRunRequest {
    api::CancelRunRequest {
        run: Some(run(ask)),
        reason: ask.name.clone(),
        request_id: ask.request_id.clone().unwrap_or_default(),
        identity: format!("client-{process}"),
    }
}

fn terminate(ask: &Ask, process: u32) -> api::TerminateRunRequest {
    api::TerminateRunRequest {
        run: Some(run(ask)),
        reason: ask.name.clone(),
        request_id: ask.request_id.clone().unwrap_or_default(),
        identity: format!("client-{process}"),
    }
}

fn done<T>(_: Response<T>) -> Option<Value> {
    None
}

fn started(response: Response<api::StartRunResponse>) -> Option<Value> {
    let answer = response.into_inner();
    Some(json!({"run_id": answer.run_id, "started": answer.started}))
}

fn status_word(status: i32) -> Value {
    wire::decode_run_status("status", status).map_or(Value::Null, |status| json!(status.as_str()))
}

fn described(response: Response<api::GetRunResponse>) -> Option<Value> {
    let run = response.into_inner().run?;
    Some(
        json!({"status": status_word(run.status), "run_id": run.run_id, "history_events": run.history_events}),
    )
}

/// `None` while the run is open.
fn result(response: Response<api::GetResultResponse>) -> Option<Value> {
    let answer = response.into_inner();
    let status = wire::decode_run_status("status", answer.status).ok().filter(|status| status.is_closed())?;
    if !answer.successor_run_id.is_empty() {
        // It goes on: the next question finds the run that does.
        return None;
    }
    Some(match answer.result.map(|p| wire::decode_payload(Some(p))) {
        Some(payload) if !payload.is_none() => everstep::decode::<Value>(&payload).unwrap_or_default(),
        _ => json!(status.as_str()),
    })
}

fn refused(status: &Status) -> Reply {
    let details = status.get_error_details();
    match details.error_info().map(|info| info.reason.as_str()) {
        Some(reason) if !UNDECIDED.contains(&reason) => {
            Reply::Fail(reason.to_owned(), status.message().to_owned())
        }
        Some(reason) => Reply::Unknown(format!("{reason}: {}", status.message())),
        None => Reply::Unknown(format!("{:?}: {}", status.code(), status.message())),
    }
}
