//! What each failure of Postgres means for an append, and that nothing is lost or doubled by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use everstep::{Ctx, StepError, WorkflowError};
use everstep_core::{Actor, CommandId, Duration, Event, EventBody, OpId, Payload, RunId, Seq, Timestamp};
use everstep_dispatch::InProcess;
use everstep_store::{Append, Error, Log, RunAppend, Verdict};
use everstep_store_postgres::{PostgresStore, migrate};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use everstep_tests::servers::{PostgresServer, require};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::stores::postgres_options;

fn completed(seq: Seq) -> Event {
    Event {
        seq,
        at: Timestamp::from_micros(1_800_000_000_000_000),
        epoch: 1,
        command_id: CommandId::from_uuid(Uuid::new_v4()),
        actor: Actor::Worker("w".to_owned()),
        body: EventBody::StepCompleted {
            step: OpId(u32::try_from(seq).unwrap_or(1)),
            name: "charge".to_owned(),
            attempt: 1,
            elapsed: Duration::from_micros(1),
            result: Payload::json("1"),
        },
    }
}

async fn append(store: &PostgresStore, run_id: RunId, seqs: std::ops::RangeInclusive<Seq>) -> Verdict {
    let events = Arc::new(seqs.map(completed).collect::<Vec<_>>());
    let run = RunAppend { run_id, start: None, events, writes: Vec::new() };
    let reply = store.append(vec![Append { run, with: None }]).await;
    reply.verdicts.into_iter().next().unwrap_or(Verdict::Conflict)
}

/// A database with one run in it that nobody works on.
async fn with_a_run() -> anyhow::Result<(PostgresStore, PgPool, RunId)> {
    let url = PostgresServer::shared()?.create_database().await?;
    migrate(&url).await?;
    let store = PostgresStore::connect(&url, postgres_options()).await?;
    let node =
        RunningNode::start(Arc::new(store.clone()), Arc::new(InProcess::new()), NodeSettings::default())
            .await?;
    let run = node.client()?.workflow::<u32>("nobody").start(&()).await?;
    let id = run.run_id().ok_or_else(|| anyhow::anyhow!("no run id"))?;
    node.shutdown().await?;
    Ok((store, PgPool::connect(&url).await?, id))
}

#[tokio::test]
async fn each_sqlstate_means_one_thing() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let (store, pool, run) = with_a_run().await?;
    type Is = fn(&Error) -> bool;
    let cases: [(&[&str], Is); 6] = [
        (&["40001", "40P01"], |e| matches!(e, Error::Contention(_))),
        (&["57014", "55P03", "25P03", "25006"], |e| matches!(e, Error::Unavailable(_))),
        (&["57P01", "57P02", "57P03", "08006"], |e| matches!(e, Error::OutcomeUnknown(_))),
        (&["53100", "53200", "53300"], |e| matches!(e, Error::Exhausted(_))),
        (&["42P01", "42703"], |e| matches!(e, Error::Schema(text) if text.contains("everstep migrate"))),
        (&["42501", "25P02", "22012"], |e| matches!(e, Error::Refused(_))),
    ];
    for (codes, is) in cases {
        for code in codes {
            let harm = format!(
                "CREATE FUNCTION harm() RETURNS trigger LANGUAGE plpgsql
                     AS $$ BEGIN RAISE EXCEPTION 'harm' USING ERRCODE = '{code}'; END $$;
                 CREATE TRIGGER harm BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION harm()"
            );
            sqlx::raw_sql(AssertSqlSafe(harm)).execute(&pool).await?;
            match append(&store, run, 2..=2).await {
                Verdict::Failed(error) => assert!(is(&error), "{code}: {error:?}"),
                other => panic!("{code}: {other:?}"),
            }
            sqlx::raw_sql("DROP FUNCTION harm CASCADE").execute(&pool).await?;
        }
    }
    let again = append(&store, run, 2..=2).await;
    assert!(matches!(again, Verdict::Committed), "nothing was left behind: {again:?}");
    let second = append(&store, run, 2..=2).await;
    assert!(matches!(second, Verdict::Conflict), "{second:?}");
    // A later event where none can be: somebody wrote past the log.
    sqlx::query("INSERT INTO events (run_id, seq, at, epoch, command_id, kind, actor) \
                 SELECT run_id, 4, at, epoch, gen_random_uuid(), kind, actor FROM events WHERE run_id = $1 AND seq = 2")
        .bind(run.uuid())
        .execute(&pool)
        .await?;
    match append(&store, run, 3..=4).await {
        Verdict::Failed(Error::Corrupt(_)) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(store.read_events(run, 0, 2).await?.len(), 2);
    Ok(())
}

/// Stands between a node and Postgres; when armed, it lets one append through and cuts the connection instead
/// of passing its answer on.
struct Cutter {
    url: String,
    armed: Arc<AtomicBool>,
    cuts: Arc<AtomicU32>,
}

impl Cutter {
    async fn before(url: &str) -> anyhow::Result<Self> {
        let (login, rest) = url.rsplit_once('@').ok_or_else(|| anyhow::anyhow!("no login in {url}"))?;
        let (server, name) = rest.split_once('/').ok_or_else(|| anyhow::anyhow!("no name in {url}"))?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("{login}@{}/{name}", listener.local_addr()?);
        let (armed, cuts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (server, of) = (server.to_owned(), (Arc::clone(&armed), Arc::clone(&cuts)));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&server).await else { return };
                tokio::spawn(relay(client, server, of.clone()));
            }
        });
        Ok(Self { url, armed, cuts })
    }
}

async fn relay(
    mut client: TcpStream,
    mut server: TcpStream,
    (armed, cuts): (Arc<AtomicBool>, Arc<AtomicU32>),
) {
    const DONE: &[u8] = b"Z\0\0\0\x05I";
    let (mut sent, mut answer) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    // What tells a connection that appends from one that reads is among the options of its first message.
    let (mut appends, mut swallow) = (false, false);
    loop {
        tokio::select! {
            read = client.read(&mut sent) => {
                let Ok(bytes @ 1..) = read else { return };
                let bytes = &sent[..bytes];
                appends |= bytes.windows(18).any(|w| w == b"force_generic_plan");
                // Bind and Execute, not the preparation before them.
                swallow |= appends && bytes[0] == b'B' && armed.swap(false, Ordering::SeqCst);
                if server.write_all(bytes).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answer) => {
                let Ok(bytes @ 1..) = read else { return };
                let bytes = &answer[..bytes];
                if swallow && bytes.ends_with(DONE) {
                    cuts.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                if !swallow && client.write_all(bytes).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_found_by_its_position() -> anyhow::Result<()> {
    const STEPS: u32 = 5;
    if !require("pg")? {
        return Ok(());
    }
    let url = PostgresServer::shared()?.create_database().await?;
    migrate(&url).await?;
    let cutter = Cutter::before(&url).await?;
    let store = PostgresStore::connect(&cutter.url, postgres_options()).await?;
    let node =
        RunningNode::start(Arc::new(store), Arc::new(InProcess::new()), NodeSettings::default()).await?;
    let armed = Arc::clone(&cutter.armed);
    let workflow = move |ctx: Ctx, (): ()| {
        let armed = Arc::clone(&armed);
        async move {
            for number in 1..=STEPS {
                let armed = Arc::clone(&armed);
                let step = ctx.step("cut", move || {
                    armed.store(true, Ordering::SeqCst);
                    async move { Ok::<_, StepError>(number) }
                });
                step.await?;
            }
            Ok::<_, WorkflowError>(STEPS)
        }
    };
    let _worker = RunningWorker::start(node.worker().register("cut", workflow))?;
    let run = node.client()?.workflow::<u32>("cut").start(&()).await?;
    assert_eq!(run.result().await?, STEPS);
    assert_eq!(cutter.cuts.load(Ordering::SeqCst), STEPS, "each step's commit lost its answer");
    let mut history = run.history(0, false).await?;
    let mut steps = Vec::new();
    while let Some(event) = history.next().await? {
        if let EventBody::StepCompleted { step, attempt, .. } = event.body {
            steps.push((step.0, attempt));
        }
    }
    assert_eq!(steps, (1..=STEPS).map(|n| (n, 1)).collect::<Vec<_>>(), "once, at the first attempt");
    Ok(())
}
