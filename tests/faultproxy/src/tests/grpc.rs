//! Faults of gRPC responses.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{Link, arrives, is_reset, passes};
use crate::{Fault, GrpcPoint, Mode, Rule, When};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(0).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

/// The frames of a response: headers, message, trailers.
fn response(stream: u32) -> [Vec<u8>; 3] {
    [frame(1, 4, stream, b"head"), frame(0, 0, stream, b"message"), frame(1, 5, stream, b"trail")]
}

/// A connection on which both have said what they speak, and the client has called twice.
async fn called(link: &Link) -> anyhow::Result<(TcpStream, TcpStream)> {
    let (mut client, mut server) = link.connect().await?;
    let settings = frame(4, 0, 0, b"");
    let calls = [PREFACE, &settings, &frame(1, 4, 1, b"call"), &frame(0, 1, 1, b"x")].concat();
    client.write_all(&calls[..10]).await?;
    client.write_all(&calls[10..]).await?;
    arrives(&mut server, &calls).await?;
    passes(&mut server, &mut client, &settings).await?;
    Ok((client, server))
}

async fn cut(at: GrpcPoint, arrive: usize) -> anyhow::Result<()> {
    let link = Link::new(Mode::Grpc).await?;
    let (mut client, mut server) = called(&link).await?;
    let rule = link.proxy.add(Rule::from(Fault::Grpc { at }).when(When::NthOfConnection(2)))?;
    let (first, second) = (response(1), response(3));
    passes(&mut server, &mut client, &first.concat()).await?;
    // Frames of other streams stand between.
    let between = frame(8, 0, 0, &[0, 0, 1, 0]);
    passes(&mut server, &mut client, &between).await?;
    server.write_all(&second.concat()).await?;
    is_reset(&mut client, &second[..arrive].concat()).await?;
    assert_eq!(link.proxy.fired(rule), 1);
    Ok(())
}

#[tokio::test]
async fn cut_before_the_headers() -> anyhow::Result<()> {
    cut(GrpcPoint::Headers, 0).await
}

#[tokio::test]
async fn cut_before_a_message() -> anyhow::Result<()> {
    cut(GrpcPoint::Data, 1).await
}

#[tokio::test]
async fn cut_before_the_trailers() -> anyhow::Result<()> {
    cut(GrpcPoint::Trailers, 2).await
}

#[tokio::test]
async fn cut_behind_the_trailers() -> anyhow::Result<()> {
    cut(GrpcPoint::End, 3).await
}

#[tokio::test]
async fn a_response_without_messages_has_no_trailers_of_its_own() -> anyhow::Result<()> {
    let link = Link::new(Mode::Grpc).await?;
    let (mut client, mut server) = called(&link).await?;
    let rule = link.proxy.add(Fault::Grpc { at: GrpcPoint::Trailers })?;
    passes(&mut server, &mut client, &frame(1, 5, 1, b"refused")).await?;
    assert_eq!(link.proxy.fired(rule), 0);
    link.proxy.heal();
    link.proxy.add(Fault::Grpc { at: GrpcPoint::Headers })?;
    server.write_all(&frame(1, 5, 3, b"refused")).await?;
    is_reset(&mut client, b"").await
}

#[tokio::test]
async fn http_1_is_relayed_as_bytes() -> anyhow::Result<()> {
    let link = Link::new(Mode::Grpc).await?;
    let (mut client, mut server) = link.connect().await?;
    link.proxy.add(Fault::Grpc { at: GrpcPoint::Headers })?;
    passes(&mut client, &mut server, b"POST / HTTP/1.1\r\n\r\n").await?;
    passes(&mut server, &mut client, b"HTTP/1.1 200 OK\r\n\r\n").await
}
