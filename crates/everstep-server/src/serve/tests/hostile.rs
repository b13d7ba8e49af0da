//! Bad input over the wire: refused with our words, and the server lives on.

use bytes::{Buf, BufMut, Bytes};
use everstep_proto::api;
use prost::Message;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use super::support::{Harness, fields, json, reason, start};

/// Sends bytes as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}

async fn send(server: &Harness, path: &'static str, body: impl Into<Bytes>, gzip: bool) -> Status {
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    if gzip {
        client = client.send_compressed(CompressionEncoding::Gzip);
    }
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(path);
    client.unary(Request::new(body.into()), path, Raw).await.map(|_| ()).unwrap_err()
}

const START: &str = "/everstep.api.v1.RunService/StartRun";

/// Field 1 of a message, holding `inner`, and so on.
fn nested(depth: usize) -> Vec<u8> {
    (0..depth).fold(Vec::new(), |inner, _| {
        let mut outer = vec![0x2a];
        prost::encoding::encode_varint(inner.len() as u64, &mut outer);
        outer.extend(inner);
        outer
    })
}

#[tokio::test]
async fn bytes_that_are_no_message_are_invalid() {
    let server = start().await;
    let bad_utf8 = vec![0x12, 0x02, 0xff, 0xfe];
    for body in [vec![0xff; 100], bad_utf8, vec![0x12, 0x7f, 0x61]] {
        let refused = send(&server, START, body.clone(), false).await;
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::InvalidArgument, "INVALID_MESSAGE"),
            "{body:?}"
        );
    }
    // Payload's failure chain is the one message that nests in itself; a worker's commit holds it.
    let deep = nested(5_000);
    let fail = api::Command {
        command: Some(api::command::Command::FailRun(api::FailRun { failure: None, unconsumed: Vec::new() })),
    };
    assert!(!fail.encode_to_vec().is_empty());
    let mut failure = vec![0x0a];
    prost::encoding::encode_varint(deep.len() as u64, &mut failure);
    failure.extend(deep);
    let wrap = |tag: u8, inner: Vec<u8>| {
        let mut outer = vec![tag];
        prost::encoding::encode_varint(inner.len() as u64, &mut outer);
        outer.extend(inner);
        outer
    };
    // ConnectRequest.messages → WorkerMessage.commit → Commit.commands → Command.fail_run → FailRun.failure
    let frame = wrap(0x0a, wrap(0x1a, wrap(0x2a, wrap(0x3a, failure))));
    let refused = send(&server, "/everstep.api.v1.WorkerService/Connect", frame, false).await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_MESSAGE"));
    server.stop().await;
}

#[tokio::test]
async fn messages_have_a_limit() {
    let server = start().await;
    let start = |bytes: usize| {
        let input =
            everstep_proto::history::Payload { encoding: "x".to_owned(), data: vec![0; bytes].into() };
        api::StartRunRequest {
            workflow_type: "order".to_owned(),
            input: Some(input),
            ..api::StartRunRequest::default()
        }
    };
    let refused = send(&server, START, start(4 << 20).encode_to_vec(), false).await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "LIMIT_EXCEEDED"));
    assert!(refused.message().contains("4194304"), "{}", refused.message());
    let bomb = send(&server, START, vec![0; 64 << 20], true).await;
    assert_eq!((bomb.code(), reason(&bomb).as_str()), (Code::ResourceExhausted, "LIMIT_EXCEEDED"));
    let payload = server.runs().start_run(start((2 << 20) + 1)).await.unwrap_err();
    assert_eq!((payload.code(), fields(&payload)), (Code::ResourceExhausted, vec!["input.data".to_owned()]));
    server.runs().start_run(start(2 << 20)).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn an_empty_request_to_any_method_names_what_is_missing() {
    let server = start().await;
    let cases: [(&'static str, &[&str]); 10] = [
        (START, &["workflow_type"]),
        ("/everstep.api.v1.RunService/GetRun", &["run"]),
        ("/everstep.api.v1.RunService/GetHistory", &["run"]),
        ("/everstep.api.v1.RunService/SignalRun", &["run", "name"]),
        ("/everstep.api.v1.RunService/CancelRun", &["run"]),
        ("/everstep.api.v1.RunService/TerminateRun", &["run"]),
        ("/everstep.api.v1.RunService/GetResult", &["run"]),
        ("/everstep.api.v1.NamespaceService/CreateNamespace", &["name"]),
        ("/everstep.api.v1.NamespaceService/GetNamespace", &["name"]),
        ("/everstep.api.v1.StepService/ResolveStep", &["run", "step_id", "resolution"]),
    ];
    for (path, missing) in cases {
        let refused = send(&server, path, Bytes::new(), false).await;
        assert_eq!(
            (refused.code(), fields(&refused)),
            (Code::InvalidArgument, missing.iter().map(|f| (*f).to_owned()).collect()),
            "{path}"
        );
    }
    let hello = send(&server, "/everstep.api.v1.WorkerService/Connect", Bytes::new(), false).await;
    assert_eq!((hello.code(), fields(&hello)), (Code::InvalidArgument, vec!["messages[0]".to_owned()]));
    server.runs().list_runs(api::ListRunsRequest::default()).await.unwrap();
    server.namespaces().list_namespaces(api::ListNamespacesRequest::default()).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn methods_that_do_not_exist_are_unimplemented() {
    let server = start().await;
    for path in ["/everstep.api.v1.RunService/DropTables", "/x.Y/Z", "/healthz"] {
        assert_ne!(send(&server, path, Bytes::new(), false).await.code(), Code::Ok, "{path}");
    }
    assert_eq!(send(&server, "/x.Y/Z", Bytes::new(), false).await.code(), Code::Unimplemented);
    server.stop().await;
}

#[tokio::test]
async fn headers_have_a_limit() {
    let server = start().await;
    let mut request = Request::new(api::ListRunsRequest::default());
    request.metadata_mut().insert("x-large", "x".repeat(64 << 10).parse().unwrap());
    assert!(server.runs().list_runs(request).await.is_err());
    server.runs().list_runs(api::ListRunsRequest::default()).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_deadline_that_has_passed_starts_nothing() {
    let server = start().await;
    let mut request = Request::new(api::StartRunRequest {
        workflow_type: "order".to_owned(),
        input: Some(json("1")),
        ..api::StartRunRequest::default()
    });
    request.metadata_mut().insert("grpc-timeout", "0n".parse().unwrap());
    let refused = server.runs().start_run(request).await.unwrap_err();
    // The client's own clock may have been first.
    assert!(matches!(refused.code(), Code::DeadlineExceeded | Code::Cancelled), "{refused:?}");
    let runs = server.runs().list_runs(api::ListRunsRequest::default()).await.unwrap().into_inner().runs;
    assert!(runs.is_empty(), "{runs:?}");
    server.stop().await;
}
