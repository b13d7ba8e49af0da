//! Faults of any link.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{Link, arrives, in_time, is_closed, is_reset, passes, silent};
use crate::{Direction, Fault, Mode, Proxy, Rule, Scope, When};

#[tokio::test]
async fn without_rules_it_is_a_relay() -> anyhow::Result<()> {
    let link = Link::new(Mode::Plain).await?;
    let (mut client, mut server) = link.connect().await?;
    passes(&mut client, &mut server, b"ask").await?;
    passes(&mut server, &mut client, b"answer").await?;
    client.shutdown().await?;
    is_closed(&mut server).await?;
    passes(&mut server, &mut client, b"a last word after the client's end").await?;
    drop(server);
    is_closed(&mut client).await
}

#[tokio::test]
async fn delay_is_at_least_what_was_asked_and_keeps_order() -> anyhow::Result<()> {
    let link = Link::new(Mode::Plain).await?;
    let (mut client, mut server) = link.connect().await?;
    let rule = link.proxy.add(Rule::from(Fault::Delay { ms: 50, jitter_ms: 30 }).direction(Direction::Up))?;
    let begun = Instant::now();
    for n in 1..=20u64 {
        client.write_all(&[b'a' + u8::try_from(n)?]).await?;
        // Each byte a unit of its own: the next is sent once the proxy has judged this one.
        in_time("the byte is judged", link.proxy.wait_fired(rule, n)).await?;
    }
    arrives(&mut server, b"bcdefghijklmnopqrstu").await?;
    assert!(begun.elapsed().as_millis() >= 50);
    passes(&mut server, &mut client, b"the other way").await?;
    assert_eq!(link.proxy.fired(rule), 20, "the other way was not delayed");
    Ok(())
}

#[tokio::test]
async fn throttle_lets_so_many_bytes_pass_in_a_second() -> anyhow::Result<()> {
    let link = Link::new(Mode::Plain).await?;
    let (mut client, mut server) = link.connect().await?;
    let rule = link.proxy.add(Fault::Throttle { bytes_per_s: 100_000 })?;
    let begun = Instant::now();
    passes(&mut client, &mut server, &[7; 20_000]).await?;
    assert!(begun.elapsed().as_millis() >= 200, "{:?}", begun.elapsed());
    assert!(link.proxy.fired(rule) > 0);
    Ok(())
}

#[tokio::test]
async fn reset_strikes_at_the_next_unit_of_its_direction() -> anyhow::Result<()> {
    let link = Link::new(Mode::Plain).await?;
    let (mut client, mut server) = link.connect().await?;
    let rule = link.proxy.add(Rule::from(Fault::Reset).direction(Direction::Down).when(When::Nth(1)))?;
    passes(&mut client, &mut server, b"up is not concerned").await?;
    assert_eq!(link.proxy.fired(rule), 0);
    server.write_all(b"down").await?;
    is_reset(&mut client, b"").await?;
    is_reset(&mut server, b"").await?;
    assert_eq!(link.proxy.fired(rule), 1);
    let (mut client, mut server) = link.connect().await?;
    passes(&mut server, &mut client, b"the second is spared").await
}

#[tokio::test]
async fn half_open_holds_back_until_it_heals() -> anyhow::Result<()> {
    let link = Link::new(Mode::Plain).await?;
    let (mut client, mut server) = link.connect().await?;
    let rule = link.proxy.add(Rule::from(Fault::HalfOpen).direction(Direction::Up))?;
    passes(&mut server, &mut client, b"down goes on").await?;
    assert_eq!(link.proxy.fired(rule), 0, "nothing was held back yet");
    client.write_all(b"held").await?;
    in_time("something is held back", link.proxy.wait_fired(rule, 1)).await?;
    passes(&mut server, &mut client, b"down still goes on").await?;
    assert!(silent(&server));
    client.shutdown().await?;
    link.proxy.heal();
    arrives(&mut server, b"held").await?;
    is_closed(&mut server).await?;
    assert!(link.proxy.counts().iter().all(|count| !count.active && count.fired == 1));
    Ok(())
}

#[tokio::test]
async fn a_rule_may_concern_open_connections_only_or_later_ones() -> anyhow::Result<()> {
    let link = Link::new(Mode::Plain).await?;
    let (mut old, mut behind_old) = link.connect().await?;
    let rule = link.proxy.add(Rule::from(Fault::HalfOpen).scope(Scope::Open))?;
    let (mut new, mut behind_new) = link.connect().await?;
    old.write_all(b"held").await?;
    in_time("something is held back", link.proxy.wait_fired(rule, 1)).await?;
    passes(&mut new, &mut behind_new, b"a successor").await?;
    assert!(silent(&behind_old));
    link.proxy.remove(rule)?;
    arrives(&mut behind_old, b"held").await?;
    link.proxy.add(Rule::from(Fault::Reset).scope(Scope::Later))?;
    passes(&mut old, &mut behind_old, b"older than the rule").await?;
    let (mut newest, _behind) = link.connect().await?;
    newest.write_all(b"x").await?;
    is_reset(&mut newest, b"").await
}

#[tokio::test]
async fn a_one_way_drop_swallows_and_its_end_resets_what_has_a_hole() -> anyhow::Result<()> {
    let link = Link::new(Mode::Plain).await?;
    let (mut client, mut server) = link.connect().await?;
    let (mut other, mut behind_other) = link.connect().await?;
    passes(&mut client, &mut server, b"before").await?;
    let rule = link.proxy.add(Rule::from(Fault::Drop).direction(Direction::Up))?;
    client.write_all(b"gone").await?;
    in_time("something is swallowed", link.proxy.wait_fired(rule, 1)).await?;
    passes(&mut server, &mut client, b"down goes on").await?;
    assert!(silent(&server));
    link.proxy.heal();
    is_reset(&mut client, b"").await?;
    passes(&mut other, &mut behind_other, b"no hole here").await
}

#[tokio::test]
async fn refused_connections_are_reset_and_never_reach_the_server() -> anyhow::Result<()> {
    let link = Link::new(Mode::Plain).await?;
    let (mut client, mut server) = link.connect().await?;
    let rule = link.proxy.add(Rule::from(Fault::Refuse).when(When::First(2)))?;
    for _ in 0..2 {
        // The reset may come before the connect is through.
        if let Ok(mut refused) = TcpStream::connect(link.proxy.address()).await {
            is_reset(&mut refused, b"").await?;
        }
    }
    passes(&mut client, &mut server, b"an open one stays").await?;
    let (mut third, mut behind_third) = link.connect().await?;
    passes(&mut third, &mut behind_third, b"the third is let in").await?;
    assert_eq!(link.proxy.fired(rule), 2);
    Ok(())
}

#[tokio::test]
async fn cut_after_so_many_bytes() -> anyhow::Result<()> {
    let link = Link::new(Mode::Plain).await?;
    let (mut client, mut server) = link.connect().await?;
    let rule = link.proxy.add(Rule::from(Fault::CutAfter { bytes: 10 }).direction(Direction::Up))?;
    passes(&mut client, &mut server, b"1234567").await?;
    client.write_all(b"89abcdef").await?;
    is_reset(&mut server, b"89a").await?;
    is_reset(&mut client, b"").await?;
    assert_eq!(link.proxy.fired(rule), 1);
    Ok(())
}

#[tokio::test]
async fn chances_depend_on_the_seed_and_the_connection_alone() -> anyhow::Result<()> {
    async fn struck(seed: u64) -> anyhow::Result<Vec<u64>> {
        let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let proxy = Proxy::start(upstream.local_addr()?.to_string(), Mode::Plain, seed).await?;
        let rule = Rule::from(Fault::Delay { ms: 0, jitter_ms: 0 }).direction(Direction::Up);
        let rule = proxy.add(rule.when(When::Chance(0.3)))?;
        let mut client = TcpStream::connect(proxy.address()).await?;
        let (mut server, _) = in_time("the proxy connects", upstream.accept()).await??;
        let mut seen = Vec::new();
        for _ in 0..64 {
            passes(&mut client, &mut server, b"x").await?;
            seen.push(proxy.fired(rule));
        }
        Ok(seen)
    }
    let first = struck(1).await?;
    assert_eq!(first, struck(1).await?);
    assert_ne!(first, struck(2).await?);
    let fired = first.last().copied().unwrap_or_default();
    assert!((5..40).contains(&fired), "{fired} of 64 at 30 %");
    Ok(())
}

#[tokio::test]
async fn nth_of_each_connection() -> anyhow::Result<()> {
    let link = Link::new(Mode::Plain).await?;
    link.proxy.add(Rule::from(Fault::Reset).direction(Direction::Up).when(When::NthOfConnection(2)))?;
    for _ in 0..2 {
        let (mut client, mut server) = link.connect().await?;
        passes(&mut client, &mut server, b"first").await?;
        client.write_all(b"second").await?;
        is_reset(&mut server, b"").await?;
    }
    Ok(())
}

#[tokio::test]
async fn rules_that_could_never_strike_are_refused() -> anyhow::Result<()> {
    let link = Link::new(Mode::Plain).await?;
    let sql = String::new();
    assert!(link.proxy.add(Fault::LoseAnswer { sql: sql.clone() }).is_err());
    assert!(link.proxy.add(Rule::from(Fault::Reset).when(When::Chance(1.5))).is_err());
    assert!(link.proxy.add(Rule::from(Fault::Reset).when(When::Nth(0))).is_err());
    assert!(link.proxy.add(Rule::from(Fault::HalfOpen).when(When::Nth(1))).is_err());
    assert!(link.proxy.add(Fault::Throttle { bytes_per_s: 0 }).is_err());
    assert!(link.proxy.remove(1).is_err());
    let postgres = Link::new(Mode::Postgres).await?;
    let down = Rule::from(Fault::LoseAnswer { sql }).direction(Direction::Down);
    assert!(postgres.proxy.add(down).is_err());
    Ok(())
}

#[tokio::test]
async fn the_proxy_stands_in_a_url() -> anyhow::Result<()> {
    let (proxy, url) = Proxy::before("postgres://me:secret@127.0.0.1:1/name", 1).await?;
    assert_eq!(url, format!("postgres://me:secret@{}/name", proxy.address()));
    // Nobody is there: the client learns it by a reset.
    let mut client = TcpStream::connect(proxy.address()).await?;
    is_reset(&mut client, b"").await?;
    let (_proxy, url) = Proxy::before("nats://127.0.0.1:4222", 1).await?;
    assert!(url.starts_with("nats://127.0.0.1:"), "{url}");
    assert!(Proxy::before("http://127.0.0.1", 1).await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_dropped_proxy_resets_its_connections() -> anyhow::Result<()> {
    let link = Link::new(Mode::Plain).await?;
    let (mut client, mut server) = link.connect().await?;
    passes(&mut client, &mut server, b"x").await?;
    assert_eq!(link.proxy.open_connections(), 1);
    drop(link);
    is_reset(&mut client, b"").await
}
