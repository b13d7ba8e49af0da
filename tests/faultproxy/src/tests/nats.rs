//! Faults of NATS messages.

use tokio::io::AsyncWriteExt as _;

use super::{Link, arrives, in_time, passes, silent};
use crate::{Direction, Fault, Mode, NatsFault, Rule, When};

const TASK: &[u8] = b"PUB es.task.a reply.1 7\r\none\r\ntw\r\n";
const NOTICE: &[u8] = b"HPUB es.notice 12 15\r\nNATS/1.0\r\n\r\nabc\r\n";
const OTHER: &[u8] = b"PING\r\n";

fn rule(subject: &str, fault: NatsFault) -> Rule {
    Rule::from(Fault::Nats { subject: subject.to_owned(), fault }).direction(Direction::Up)
}

#[tokio::test]
async fn payloads_are_no_protocol_lines() -> anyhow::Result<()> {
    let link = Link::new(Mode::Nats).await?;
    let (mut client, mut server) = link.connect().await?;
    let dropped = link.proxy.add(rule("x", NatsFault::Drop))?;
    passes(&mut server, &mut client, b"INFO {}\r\nMSG es.a 1 11\r\nPUB x 1\r\ny\n\r\n+OK\r\n").await?;
    passes(&mut client, &mut server, b"PUB es.a 11\r\nPUB x 1\r\ny\n\r\n").await?;
    // In parts: a message goes on once it is whole.
    client.write_all(&TASK[..9]).await?;
    client.write_all(&TASK[9..]).await?;
    arrives(&mut server, TASK).await?;
    assert_eq!(link.proxy.fired(dropped), 0);
    Ok(())
}

#[tokio::test]
async fn messages_are_dropped_by_subject() -> anyhow::Result<()> {
    let link = Link::new(Mode::Nats).await?;
    let (mut client, mut server) = link.connect().await?;
    let dropped = link.proxy.add(rule("es.task", NatsFault::Drop))?;
    client.write_all(&[TASK, NOTICE, TASK, OTHER].concat()).await?;
    arrives(&mut server, &[NOTICE, OTHER].concat()).await?;
    assert_eq!(link.proxy.fired(dropped), 2);
    let message = b"MSG es.task.a 1 1\r\nx\r\n";
    passes(&mut server, &mut client, message).await?;
    link.proxy.heal();
    passes(&mut client, &mut server, TASK).await
}

#[tokio::test]
async fn messages_are_doubled_and_doubled_again() -> anyhow::Result<()> {
    let link = Link::new(Mode::Nats).await?;
    let (mut client, mut server) = link.connect().await?;
    let doubled = link.proxy.add(rule("es.task", NatsFault::Duplicate { more: 4 }).when(When::Nth(2)))?;
    client.write_all(&[TASK, TASK, NOTICE].concat()).await?;
    arrives(&mut server, &[&TASK.repeat(6), NOTICE].concat()).await?;
    assert_eq!(link.proxy.fired(doubled), 1);
    Ok(())
}

#[tokio::test]
async fn messages_change_places() -> anyhow::Result<()> {
    let link = Link::new(Mode::Nats).await?;
    let (mut client, mut server) = link.connect().await?;
    let swapped = link.proxy.add(rule("es", NatsFault::Swap).when(When::First(1)))?;
    client.write_all(&[TASK, OTHER, NOTICE].concat()).await?;
    arrives(&mut server, &[OTHER, NOTICE, TASK].concat()).await?;
    assert_eq!(link.proxy.fired(swapped), 1);
    // One that meets no other is not lost.
    link.proxy.heal();
    link.proxy.add(rule("es", NatsFault::Swap))?;
    passes(&mut client, &mut server, TASK).await
}

#[tokio::test]
async fn messages_come_late_or_again() -> anyhow::Result<()> {
    let link = Link::new(Mode::Nats).await?;
    let (mut client, mut server) = link.connect().await?;
    let delayed = link.proxy.add(rule("es.task", NatsFault::Delay { ms: 100 }))?;
    client.write_all(&[TASK, NOTICE].concat()).await?;
    arrives(&mut server, &[NOTICE, TASK].concat()).await?;
    assert_eq!(link.proxy.fired(delayed), 1);
    link.proxy.heal();
    let replayed = link.proxy.add(rule("es.task", NatsFault::Replay { ms: 100 }))?;
    client.write_all(&[TASK, NOTICE].concat()).await?;
    arrives(&mut server, &[TASK, NOTICE, TASK].concat()).await?;
    in_time("it is counted", link.proxy.wait_fired(replayed, 1)).await?;
    assert!(silent(&server));
    Ok(())
}
