//! What each failure of Postgres means for an append, and that nothing is lost or doubled by it.

use std::sync::Arc;

use everstep::{Ctx, StepError, WorkflowError};
use everstep_core::{Actor, CommandId, Duration, Event, EventBody, OpId, Payload, RunId, Seq, Timestamp};
use everstep_dispatch::InProcess;
use everstep_faultproxy::{Fault, Proxy, Rule, When};
use everstep_store::{Append, Error, Log, RunAppend, Verdict};
use everstep_store_postgres::{PostgresStore, migrate};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use everstep_tests::servers::{PostgresServer, require};
use sqlx::{AssertSqlSafe, PgPool};
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

/// Each step, before it returns, arms the proxy for the next append: its answer is lost behind its commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_found_by_its_position() -> anyhow::Result<()> {
    const STEPS: u32 = 5;
    if !require("pg")? {
        return Ok(());
    }
    let url = PostgresServer::shared()?.create_database().await?;
    migrate(&url).await?;
    let (proxy, url) = Proxy::before(&url, 1).await?;
    let store = PostgresStore::connect(&url, postgres_options()).await?;
    let node =
        RunningNode::start(Arc::new(store), Arc::new(InProcess::new()), NodeSettings::default()).await?;
    let link = proxy.handle();
    let workflow = move |ctx: Ctx, (): ()| {
        let link = link.clone();
        async move {
            for number in 1..=STEPS {
                let link = link.clone();
                let step = ctx.step("cut", move || {
                    let lose = Fault::LoseAnswer { sql: "INSERT INTO events".to_owned() };
                    let armed = link.add(Rule::from(lose).when(When::Nth(1)));
                    async move {
                        armed.map_err(|e| StepError::new("Proxy", e.to_string()).non_retryable())?;
                        Ok::<_, StepError>(number)
                    }
                });
                step.await?;
            }
            Ok::<_, WorkflowError>(STEPS)
        }
    };
    let _worker = RunningWorker::start(node.worker().register("cut", workflow))?;
    let run = node.client()?.workflow::<u32>("cut").start(&()).await?;
    assert_eq!(run.result().await?, STEPS);
    let cuts: u64 = proxy.counts().iter().map(|count| count.fired).sum();
    assert_eq!(cuts, u64::from(STEPS), "each step's commit lost its answer");
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
