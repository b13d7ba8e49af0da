//! A client of a server that answers as it is told to.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use everstep_proto::api::run_service_server::{RunService, RunServiceServer};
use futures::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::*;

/// SETTINGS, and a GOAWAY with `ENHANCE_YOUR_CALM`: what the server says to a connection too many.
const GOODBYE: &[u8] = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0b";

/// What a request said: its kind, its request id, and what it carries.
type Heard = (&'static str, String, String);

/// Takes its answers from a list, then says yes to all.
#[derive(Clone, Default)]
struct Scripted {
    answers: Arc<Mutex<VecDeque<Status>>>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Scripted {
    fn next<T: Default>(&self, heard: Heard) -> Result<Response<T>, Status> {
        self.heard.lock().unwrap().push(heard);
        self.answers.lock().unwrap().pop_front().map_or_else(|| Ok(Response::new(T::default())), Err)
    }

    /// The requests so far, which are forgotten.
    fn heard(&self) -> Vec<Heard> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }

    fn will_say(&self, answers: impl IntoIterator<Item = Status>) {
        self.answers.lock().unwrap().extend(answers);
    }

    /// Serves; so many connections are told to come later.
    async fn serve(&self, turned_away: usize) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::connect(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let service = RunServiceServer::new(self.clone());
        let serving = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(incoming(listener, turned_away)));
        client
    }
}

fn incoming(listener: TcpListener, turned_away: usize) -> impl Stream<Item = io::Result<TcpStream>> {
    futures::stream::unfold((listener, turned_away), |(listener, mut left)| async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if left == 0 {
                return Some((Ok(stream), (listener, left)));
            }
            if left % 2 == 0 {
                until_headers(&mut stream).await;
            }
            stream.write_all(GOODBYE).await.unwrap();
            left -= 1;
        }
    })
}

/// Waits until a client has asked for something.
async fn until_headers(stream: &mut TcpStream) {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut rest = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut rest).await.unwrap();
        if head[3] == 1 {
            return;
        }
    }
}

#[tonic::async_trait]
impl RunService for Scripted {
    type GetHistoryStream = Pin<Box<dyn Stream<Item = Result<api::GetHistoryResponse, Status>> + Send>>;
    type ExportHistoryStream = Pin<Box<dyn Stream<Item = Result<api::ExportHistoryResponse, Status>> + Send>>;

    async fn start_run(
        &self,
        request: Request<api::StartRunRequest>,
    ) -> Result<Response<api::StartRunResponse>, Status> {
        let request = request.into_inner();
        self.next(("start", request.request_id, request.workflow_id))
    }

    async fn signal_run(
        &self,
        request: Request<api::SignalRunRequest>,
    ) -> Result<Response<api::SignalRunResponse>, Status> {
        let request = request.into_inner();
        let input = String::from_utf8(request.input.unwrap().data.to_vec()).unwrap();
        self.next(("signal", request.request_id, format!("{}={input}", request.name)))
    }

    async fn cancel_run(
        &self,
        request: Request<api::CancelRunRequest>,
    ) -> Result<Response<api::CancelRunResponse>, Status> {
        let request = request.into_inner();
        self.next(("cancel", request.request_id, request.reason))
    }

    async fn terminate_run(
        &self,
        request: Request<api::TerminateRunRequest>,
    ) -> Result<Response<api::TerminateRunResponse>, Status> {
        let request = request.into_inner();
        self.next(("terminate", request.request_id, request.reason))
    }

    async fn get_run(&self, _: Request<api::GetRunRequest>) -> Result<Response<api::GetRunResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn query_run(
        &self,
        _: Request<api::QueryRunRequest>,
    ) -> Result<Response<api::QueryRunResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_runs(
        &self,
        _: Request<api::ListRunsRequest>,
    ) -> Result<Response<api::ListRunsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_history(
        &self,
        _: Request<api::GetHistoryRequest>,
    ) -> Result<Response<Self::GetHistoryStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_result(
        &self,
        _: Request<api::GetResultRequest>,
    ) -> Result<Response<api::GetResultResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn update_run(
        &self,
        _: Request<api::UpdateRunRequest>,
    ) -> Result<Response<api::UpdateRunResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_update(
        &self,
        _: Request<api::GetUpdateRequest>,
    ) -> Result<Response<api::GetUpdateResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn signal_with_start_run(
        &self,
        _: Request<api::SignalWithStartRunRequest>,
    ) -> Result<Response<api::SignalWithStartRunResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn update_with_start_run(
        &self,
        _: Request<api::UpdateWithStartRunRequest>,
    ) -> Result<Response<api::UpdateWithStartRunResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn export_history(
        &self,
        _: Request<api::ExportHistoryRequest>,
    ) -> Result<Response<Self::ExportHistoryStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A status as the server words it, with the pause that it asks for.
fn worded(code: Code, reason: &str, come_again: bool) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "everstep.dev", std::collections::HashMap::<String, String>::new());
    if come_again {
        details.set_retry_info(Some(Duration::from_millis(1)));
    }
    Status::with_error_details(code, "as told", details)
}

/// All requests were the same; gives one of them.
fn one(heard: Vec<Heard>, times: usize) -> Heard {
    assert_eq!(heard.len(), times, "{heard:?}");
    assert!(heard.iter().all(|h| *h == heard[0]), "{heard:?}");
    heard[0].clone()
}

#[tokio::test]
async fn a_request_keeps_its_id_however_often_it_is_sent() {
    let server = Scripted::default();
    let run = server.serve(0).await.latest::<u32>("w");
    let away = || worded(Code::Unavailable, "OUTCOME_UNKNOWN", true);
    let said = [
        (run.signal("paid", &1), ("signal", "paid=1")),
        (run.cancel("enough"), ("cancel", "enough")),
        (run.terminate("now"), ("terminate", "now")),
    ];
    let mut ids = Vec::new();
    for (request, (kind, carries)) in said {
        server.will_say([away(), away(), worded(Code::Internal, "INTERNAL", false)]);
        let refused = request.send().await.unwrap_err();
        assert_eq!(refused.reason(), Some("INTERNAL"));
        request.send().await.unwrap();
        request.clone().await.unwrap();
        let heard = one(server.heard(), 5);
        assert_eq!((heard.0, heard.2.as_str()), (kind, carries));
        ids.push(heard.1);
    }
    // Each has its own.
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
}

#[tokio::test]
async fn a_caller_gives_a_request_its_id() {
    let server = Scripted::default();
    let run = server.serve(0).await.latest::<u32>("w");
    for _ in 0..2 {
        run.signal("paid", &1).request_id("payment/1").await.unwrap();
    }
    assert_eq!(one(server.heard(), 2).1, "payment/1");
    run.cancel("enough").request_id("cancel/1").await.unwrap();
    assert_eq!(one(server.heard(), 1).1, "cancel/1");
    run.terminate("now").request_id("end/1").await.unwrap();
    assert_eq!(one(server.heard(), 1).1, "end/1");
}

#[tokio::test]
async fn a_used_id_is_a_refusal_that_is_not_repeated() {
    let server = Scripted::default();
    let run = server.serve(0).await.latest::<u32>("w");
    server.will_say([worded(Code::InvalidArgument, "IDEMPOTENCY_MISMATCH", false)]);
    let refused = run.signal("paid", &2).request_id("payment/1").await.unwrap_err();
    assert_eq!(refused.reason(), Some("IDEMPOTENCY_MISMATCH"));
    assert_eq!(server.heard().len(), 1);
}

#[tokio::test]
async fn a_value_that_does_not_encode_is_not_sent() {
    let server = Scripted::default();
    let run = server.serve(0).await.latest::<u32>("w");
    let no_json = std::collections::BTreeMap::from([((1, 2), 3)]);
    let refused = run.signal("paid", &no_json).await.unwrap_err();
    assert!(matches!(refused, ClientError::Payload(_)), "{refused:?}");
    assert!(server.heard().is_empty());
}

#[tokio::test]
async fn a_connection_too_many_is_made_again() {
    let server = Scripted::default();
    let run = server.serve(3).await.latest::<u32>("w");
    run.signal("paid", &1).await.unwrap();
    one(server.heard(), 1);
    let started = server.serve(2).await.workflow::<u32>("t").start(&1).await;
    // The scripted answer names no run, which is not looked at here.
    assert!(started.is_ok(), "{started:?}");
    one(server.heard(), 1);
}

#[tokio::test]
async fn who_is_never_let_in_hears_so() {
    let run = Scripted::default().serve(1_000).await.latest::<u32>("w");
    let refused = run.signal("paid", &1).await.unwrap_err();
    assert!(matches!(refused, ClientError::Unreachable(_)), "{refused:?}");
}

#[tokio::test]
async fn exhaustion_is_repeated_unless_the_server_says_what_is_exhausted() {
    let server = Scripted::default();
    let run = server.serve(0).await.latest::<u32>("w");
    server.will_say([
        Status::resource_exhausted("a proxy"),
        worded(Code::ResourceExhausted, "BYTES_IN_FLIGHT", true),
    ]);
    run.signal("paid", &1).await.unwrap();
    one(server.heard(), 3);
    server.will_say([worded(Code::ResourceExhausted, "STORE_EXHAUSTED", false)]);
    let refused = run.signal("paid", &1).await.unwrap_err();
    assert_eq!(refused.reason(), Some("STORE_EXHAUSTED"));
    one(server.heard(), 1);
}
