//! The plain HTTP side of the port, and what the transport says about its limits.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::support::{HANGS, start};
use crate::serve::{Server, ServerOptions};

async fn talk(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // The end may come as a reset: what was said before it counts.
    let _ = timeout(HANGS, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(addr: SocketAddr, path: &str) -> String {
    talk(addr, format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await
}

#[tokio::test]
async fn the_endpoints_answer_over_http_1() {
    let server = start().await;
    server.start_run("order-1").await;
    let health = get(server.addr, "/healthz").await;
    assert!(health.starts_with("HTTP/1.1 200") && health.contains("alive"), "{health}");
    let ready = get(server.addr, "/readyz").await;
    assert!(
        ready.starts_with("HTTP/1.1 200") && ready.contains("{\"ready\":true,\"reasons\":[]}"),
        "{ready}"
    );
    let metrics = get(server.addr, "/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
    let counted = "rpc_server_call_duration_seconds_count{rpc_method=\"everstep.api.v1.RunService/StartRun\",\
                   rpc_response_status_code=\"OK\",rpc_system_name=\"grpc\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
    assert!(metrics.contains("everstep_runs_started_total 1"), "{metrics}");
    assert!(metrics.contains("everstep_connections 2"), "{metrics}");
    let unknown = get(server.addr, "/etc/passwd").await;
    assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
    server.stop().await;
}

#[tokio::test]
async fn other_protocols_are_turned_away() {
    let server = start().await;
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let answer = talk(server.addr, &[&tls_hello[..], &[0; 64], b"\r\n\r\n"].concat()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    let answer = talk(server.addr, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage that is no frame at all").await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(get(server.addr, "/healthz").await.starts_with("HTTP/1.1 200"), "still alive");
    server.stop().await;
}

#[tokio::test]
async fn the_settings_frame_names_the_limits() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await.unwrap();
    let mut head = [0; 9];
    timeout(HANGS, stream.read_exact(&mut head)).await.unwrap().unwrap();
    assert_eq!(head[3], 4, "the first frame is SETTINGS");
    let mut body = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
    stream.read_exact(&mut body).await.unwrap();
    let setting = |wanted: u16| {
        body.chunks_exact(6)
            .find(|s| u16::from_be_bytes([s[0], s[1]]) == wanted)
            .map(|s| u32::from_be_bytes([s[2], s[3], s[4], s[5]]))
    };
    assert_eq!(setting(3), Some(200), "MAX_CONCURRENT_STREAMS");
    assert_eq!(setting(6), Some(16 * 1024), "MAX_HEADER_LIST_SIZE");
    assert_eq!(setting(4), Some(1 << 20), "INITIAL_WINDOW_SIZE");
    assert_eq!(setting(5), Some(16 * 1024), "MAX_FRAME_SIZE");
    assert_eq!(setting(8), None, "no CONNECT protocol");
    // What all streams together may send ahead comes as an increment of the protocol's 65,535.
    let mut rest = [0; 9 + 9 + 4];
    timeout(HANGS, stream.read_exact(&mut rest)).await.unwrap().unwrap();
    let update = rest.windows(13).find(|w| w[..9] == [0, 0, 4, 8, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(u32::from_be_bytes(update[9..].try_into().unwrap()) + 65_535, 1 << 20);
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn other_machines_are_not_let_in_by_accident() {
    let options = || ServerOptions::new(everstep_core::NodeId::from_uuid(uuid::Uuid::nil()));
    for addr in ["0.0.0.0:0", "[::]:0", "192.0.2.1:7233"] {
        let refused = Server::bind(addr.parse().unwrap(), options()).await.unwrap_err();
        assert!(matches!(refused, crate::Error::RemoteRefused { .. }), "{refused}");
        assert!(refused.to_string().contains("--insecure-allow-remote"), "{refused}");
    }
    let first = Server::bind("127.0.0.1:0".parse().unwrap(), options()).await.unwrap();
    let taken = Server::bind(first.local_addr(), options()).await.unwrap_err();
    assert_eq!(taken.to_string(), format!("cannot listen on {}", first.local_addr()));
}
