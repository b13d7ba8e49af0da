//! NATS loses its stream, its consumers, its process and its data; nobody repairs anything by hand.

use async_nats::jetstream;

use super::*;

async fn admin(server: &Server) -> Result<jetstream::Context> {
    Ok(jetstream::new(async_nats::connect(server.url()).await?))
}

/// Waits for the loss of the connection to show.
async fn loss_of_connection(node: &NatsDispatch) -> Result<()> {
    let noticing = async {
        while node.notices().await.is_ok() {}
        while node.is_connected() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, noticing).await.context("the loss of the connection did not show")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_stream_is_made_again() -> Result<()> {
    let Some(server) = Server::start()? else { return Ok(()) };
    let (from, to) = (connect(&server).await?, connect(&server).await?);
    let key = queue("q");
    let before = hint(&key);
    from.publish(before.clone()).await?;
    let taken = pull_until(&*to, &key).await?;
    assert_eq!(taken[0].hint, before);
    to.ack(taken[0].token).await;

    // By a publisher that misses it, while the other node has a pull waiting.
    let puller = Arc::clone(&to);
    let waited = key.clone();
    let waiting = tokio::spawn(async move { pull_until(&*puller, &waited).await });
    admin(&server).await?.delete_stream("EVERSTEP_TASKS").await?;
    let after = hint(&key);
    from.publish(after.clone()).await?;
    assert_eq!(waiting.await??[0].hint, after);

    // By a puller that misses it.
    admin(&server).await?.delete_stream("EVERSTEP_TASKS").await?;
    let fresh = connect_without_stream(&server).await?;
    let other = queue("other");
    let last = hint(&other);
    let (taken, published) =
        tokio::join!(pull_until(&*fresh, &other), async { publish_until(&*from, &last).await });
    published?;
    assert_eq!(taken?[0].hint, last);
    Ok(())
}

/// A node whose first act after the stream has gone is a pull.
async fn connect_without_stream(server: &Server) -> Result<Arc<NatsDispatch>> {
    let node = connect(server).await?;
    admin(server).await?.delete_stream("EVERSTEP_TASKS").await?;
    Ok(node)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_consumer_is_made_again() -> Result<()> {
    let Some(server) = Server::start()? else { return Ok(()) };
    let (from, to) = (connect(&server).await?, connect(&server).await?);
    let key = queue("q");
    from.publish(hint(&key)).await?;
    let taken = pull_until(&*to, &key).await?;
    to.ack(taken[0].token).await;

    let mut waiting = pin!(pull_until(&*to, &key));
    assert!(!poll_once(waiting.as_mut()));
    let admin = admin(&server).await?;
    let stream = admin.get_stream("EVERSTEP_TASKS").await?;
    let names: Vec<String> = futures::TryStreamExt::try_collect(stream.consumer_names()).await?;
    assert_eq!(names.len(), 1, "nodes share one consumer per queue: {names:?}");
    stream.delete_consumer(&names[0]).await?;
    let sent = hint(&key);
    from.publish(sent.clone()).await?;
    assert_eq!(waiting.await?[0].hint, sent);
    Ok(())
}

async fn survives_a_restart(wipe: bool) -> Result<()> {
    let Some(mut server) = Server::start()? else { return Ok(()) };
    let (from, to) = (connect(&server).await?, connect(&server).await?);
    let key = queue("q");
    let (before, sent) = (hint(&key), hint(&key));
    from.publish(before.clone()).await?;
    let taken = pull_until(&*to, &key).await?;
    to.ack(taken[0].token).await;

    let puller = Arc::clone(&to);
    let waited = key.clone();
    let expected = sent.clone();
    let waiting = tokio::spawn(async move {
        loop {
            for delivery in pull_until(&*puller, &waited).await? {
                puller.ack(delivery.token).await;
                if delivery.hint == expected {
                    return anyhow::Ok(());
                }
                // Its acknowledgement may have died with the server, which then still has it.
                assert!(delivery.hint == before && !wipe, "unexpected: {delivery:?}");
            }
        }
    });
    server.kill()?;
    loss_of_connection(&from).await?;
    loss_of_connection(&to).await?;
    let publishing = tokio::time::timeout(Duration::from_secs(1), from.publish(hint(&key))).await;
    let Err(Error::Unavailable(message)) = publishing.context("publishing hangs without a server")? else {
        panic!("published without a server");
    };
    assert!(message.contains(&server.address()), "{message}");
    let pulling = tokio::time::timeout(Duration::from_secs(1), from.pull(&key, 1)).await;
    assert!(matches!(pulling, Ok(Err(Error::Unavailable(_)))), "pulling without a server: {pulling:?}");

    if wipe {
        server.wipe()?;
    }
    server.restart()?;
    publish_until(&*from, &sent).await?;
    assert!(from.is_connected());
    waiting.await??;
    assert!(to.is_connected());

    let node = NodeId::from_uuid(Uuid::new_v4());
    let notice = Notice { run_id: sent.run_id, tail: 3, closed: true, node, asked: false };
    from.notify(notice).await;
    let heard = async {
        loop {
            // The loss that the restart meant may be told first, once.
            if let Ok(heard) = to.notices().await {
                return heard;
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, heard).await?, [notice]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_comes_back_with_its_data() -> Result<()> {
    survives_a_restart(false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_comes_back_without_its_data() -> Result<()> {
    survives_a_restart(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_skipped_and_removed() -> Result<()> {
    let Some(server) = Server::start()? else { return Ok(()) };
    let node = connect(&server).await?;
    let admin = admin(&server).await?;
    let subject = "everstep.task.default.q";
    for garbage in [&b"\xFF\xFF\xFF\xFF"[..], b"", b"{\"run_id\": 1}"] {
        admin.publish(subject, garbage.into()).await?.await?;
    }
    // A hint for another queue, smuggled in on this one's subject.
    let other = queue("other");
    node.publish(hint(&other)).await?;
    let stream = admin.get_stream("EVERSTEP_TASKS").await?;
    let smuggled = stream.get_last_raw_message_by_subject("everstep.task.default.other").await?;
    admin.publish(subject, smuggled.payload).await?.await?;
    assert_eq!(pull_until(&*node, &other).await?.len(), 1);

    let key = queue("q");
    let good = hint(&key);
    node.publish(good.clone()).await?;
    let taken = pull_until(&*node, &key).await?;
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].hint, good);
    node.ack(taken[0].token).await;

    // All that is left is the other queue's hint, which nobody acknowledged.
    let emptied = async {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        while stream.get_info().await?.state.messages > 1 {
            pause.tick().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, emptied).await.context("garbage stays in the stream")?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_among_notices_is_skipped() -> Result<()> {
    let Some(server) = Server::start()? else { return Ok(()) };
    let (from, to) = (connect(&server).await?, connect(&server).await?);
    let other = async_nats::connect(server.url()).await?;
    for garbage in [&b"\xFF\xFF\xFF\xFF"[..], b"", b"\x04abcd"] {
        other.publish("everstep.notice", garbage.into()).await?;
    }
    other.flush().await?;
    let node = NodeId::from_uuid(Uuid::new_v4());
    let notice =
        Notice { run_id: RunId::from_uuid(Uuid::new_v4()), tail: 3, closed: false, node, asked: false };
    from.notify(notice).await;
    assert_eq!(tokio::time::timeout(PATIENCE, to.notices()).await??, [notice]);
    Ok(())
}
