//! A server in this process, and clients of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use everstep_core::{NodeId, Timestamp};
use everstep_dispatch::InProcess;
use everstep_engine::{Engine, EngineConfig};
use everstep_proto::api::namespace_service_client::NamespaceServiceClient;
use everstep_proto::api::run_service_client::RunServiceClient;
use everstep_proto::api::worker_service_client::WorkerServiceClient;
use everstep_proto::api::{self, server_message, worker_message};
use everstep_proto::history;
use everstep_store::MemoryStore;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::serve::{Server, ServerOptions};

/// Nothing in these tests takes this long unless it hangs.
pub(super) const HANGS: Duration = Duration::from_secs(30);

pub(super) struct Harness {
    pub(super) addr: std::net::SocketAddr,
    pub(super) shutdown: CancellationToken,
    pub(super) serving: JoinHandle<Result<(), crate::Error>>,
    pub(super) channel: Channel,
}

pub(super) async fn start() -> Harness {
    start_with_grace(Duration::from_secs(5)).await
}

pub(super) async fn start_with_grace(grace: Duration) -> Harness {
    start_with(|options| options.grace = grace).await
}

pub(super) async fn start_with(change: impl FnOnce(&mut ServerOptions)) -> Harness {
    let clock = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap())
    };
    let node_id = NodeId::from_uuid(Uuid::new_v4());
    let store = Arc::new(MemoryStore::new(clock));
    let engine = Engine::start(EngineConfig::new(node_id), store, Arc::new(InProcess::new())).await.unwrap();
    let mut options = ServerOptions::new(node_id);
    options.grace = Duration::from_secs(5);
    change(&mut options);
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), options).await.unwrap();
    let addr = server.local_addr();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(server.serve(engine, shutdown.clone().cancelled_owned()));
    let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
    Harness { addr, shutdown, serving, channel }
}

impl Harness {
    pub(super) fn runs(&self) -> RunServiceClient<Channel> {
        RunServiceClient::new(self.channel.clone())
    }

    pub(super) fn namespaces(&self) -> NamespaceServiceClient<Channel> {
        NamespaceServiceClient::new(self.channel.clone())
    }

    /// Starts a run that no worker takes yet.
    pub(super) async fn start_run(&self, workflow_id: &str) -> String {
        let request = api::StartRunRequest {
            workflow_id: workflow_id.to_owned(),
            workflow_type: "order".to_owned(),
            input: Some(json("1")),
            ..api::StartRunRequest::default()
        };
        self.runs().start_run(request).await.unwrap().into_inner().run_id
    }

    pub(super) async fn worker(&self) -> Worker {
        self.worker_with(hello()).await.unwrap()
    }

    pub(super) async fn worker_with(&self, hello: api::Hello) -> Result<Worker, Status> {
        let mut worker = self.stream(worker_message::Message::Hello(hello)).await?;
        match worker.next().await? {
            Some(server_message::Message::Welcome(welcome)) => {
                worker.token = welcome.session_token;
                Ok(worker)
            }
            other => panic!("{other:?}"),
        }
    }

    /// A stream whose first message is `first`.
    pub(super) async fn stream(&self, first: worker_message::Message) -> Result<Worker, Status> {
        let (outbound, messages) = mpsc::channel(16);
        outbound.send(frame(first)).await.unwrap();
        // Room for a frame and the largest event on top of it.
        let mut client = WorkerServiceClient::new(self.channel.clone()).max_decoding_message_size(8 << 20);
        let inbound = client.connect(Request::new(ReceiverStream::new(messages))).await?.into_inner();
        Ok(Worker { outbound, inbound, gathered: Vec::new(), token: String::new() })
    }

    /// Ends the server and waits for it.
    pub(super) async fn stop(self) {
        let Self { shutdown, serving, channel, .. } = self;
        drop(channel);
        shutdown.cancel();
        tokio::time::timeout(HANGS, serving).await.unwrap().unwrap().unwrap();
    }
}

/// A worker by hand.
pub(super) struct Worker {
    pub(super) outbound: mpsc::Sender<api::ConnectRequest>,
    inbound: Streaming<api::ConnectResponse>,
    gathered: Vec<server_message::Message>,
    pub(super) token: String,
}

impl Worker {
    /// The next message; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Result<Option<server_message::Message>, Status> {
        while self.gathered.is_empty() {
            let frame = tokio::time::timeout(HANGS, self.inbound.message()).await.unwrap()?;
            let Some(frame) = frame else { return Ok(None) };
            self.gathered = frame.messages.into_iter().rev().map(|m| m.message.unwrap()).collect();
        }
        Ok(self.gathered.pop())
    }

    pub(super) async fn send(&self, message: worker_message::Message) {
        self.outbound.send(frame(message)).await.unwrap();
    }

    pub(super) async fn activated(&mut self) -> api::Activate {
        match self.next().await.unwrap() {
            Some(server_message::Message::Activate(activate)) => activate,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a commit is answered, and gives the events that came until then.
    pub(super) async fn committed(&mut self, number: u32) -> Vec<history::Event> {
        let mut events = Vec::new();
        loop {
            match self.next().await.unwrap() {
                Some(server_message::Message::RunEvents(new)) => {
                    events.extend(new.events);
                    if new.committed >= number {
                        return events;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// The status that the stream ends with.
    pub(super) async fn ended(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}

pub(super) fn frame(message: worker_message::Message) -> api::ConnectRequest {
    api::ConnectRequest { messages: vec![api::WorkerMessage { message: Some(message) }] }
}

pub(super) fn hello() -> api::Hello {
    api::Hello {
        protocol_min: 1,
        protocol_max: 1,
        task_queues: vec!["default".to_owned()],
        worker: Some(history::WorkerInfo { identity: "w".to_owned(), build_id: "b".to_owned() }),
        run_slots: 10,
        ..api::Hello::default()
    }
}

pub(super) fn commit(
    run_id: &str,
    epoch: u32,
    number: u32,
    seen_seq: u64,
    command: api::command::Command,
) -> worker_message::Message {
    let commands = vec![api::Command { command: Some(command) }];
    worker_message::Message::Commit(api::Commit {
        run_id: run_id.to_owned(),
        epoch,
        number,
        seen_seq,
        commands,
        ahead_at: None,
    })
}

pub(super) fn json(text: &str) -> history::Payload {
    history::Payload { encoding: "json".to_owned(), data: text.as_bytes().to_vec().into() }
}

pub(super) fn of_workflow(workflow_id: &str) -> Option<api::RunRef> {
    Some(api::RunRef { workflow_id: workflow_id.to_owned(), ..api::RunRef::default() })
}

pub(super) fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|i| i.reason).unwrap_or_default()
}

pub(super) fn fields(status: &Status) -> Vec<String> {
    let listed = status.get_details_bad_request().map(|b| b.field_violations).unwrap_or_default();
    listed.into_iter().map(|v| v.field).collect()
}
