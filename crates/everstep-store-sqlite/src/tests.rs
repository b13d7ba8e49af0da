//! Opening, refusing, and what is left after a restart or a failure.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use everstep_core::{
    Actor, CommandId, Duration, Event, EventBody, OpId, Payload, RunId, RunRow, RunStatus, Seq, Timestamp,
    Write,
};
use everstep_store::conformance::{self, Subject};
use everstep_store::{
    Append, Catalog, Error, Log, MemoryStore, RunAppend, Sessions, StartClaim, Store, Sweep, Verdict,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;

use crate::SqliteStore;
use crate::open::is_sound;

struct File {
    _folder: TempDir,
    path: PathBuf,
}

fn file() -> File {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("everstep.db");
    File { _folder: folder, path }
}

async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

fn event(seq: Seq, body: EventBody) -> Event {
    Event {
        seq,
        at: Timestamp::from_micros(1_700_000_000_000_001),
        epoch: 1,
        command_id: CommandId::from_uuid(Uuid::now_v7()),
        actor: Actor::Worker("w-1".to_owned()),
        body,
    }
}

fn steps(run: RunId, seq: Seq, count: u64, data: &[u8]) -> Append {
    let body = |seq| EventBody::StepCompleted {
        step: OpId(seq as u32),
        name: "charge".to_owned(),
        attempt: 1,
        elapsed: Duration::from_micros(9),
        result: Payload::json(data.to_vec()),
    };
    let events = (seq..seq + count).map(|seq| event(seq, body(seq))).collect();
    Append::of(RunAppend { run_id: run, start: None, events: Arc::new(events), writes: vec![] })
}

fn start(run: RunId) -> Append {
    let row = RunRow {
        run_id: run,
        namespace: "default".to_owned(),
        workflow_id: run.to_string(),
        workflow_type: "order".to_owned(),
        task_queue: "main".to_owned(),
        status: RunStatus::Running,
        owner: None,
        epoch: 0,
        build_id: String::new(),
        blocked: String::new(),
        cancel_requested: false,
        started_at: Timestamp::from_micros(1_700_000_000_000_001),
        closed_at: None,
        last_seq: 1,
    };
    let claim = StartClaim {
        namespace: row.namespace.clone(),
        workflow_id: row.workflow_id.clone(),
        expected: None,
        request_id: "r".to_owned(),
        body_hash: [1; 32],
    };
    let first = event(1, EventBody::CancelRequested { reason: "stands for a start".to_owned() });
    Append::of(RunAppend {
        run_id: run,
        start: Some(claim),
        events: Arc::new(vec![first]),
        writes: vec![Write::Run(Box::new(row))],
    })
}

/// A new run with one event.
async fn started(store: &SqliteStore) -> RunId {
    let run = RunId::from_uuid(Uuid::now_v7());
    assert!(matches!(append(store, start(run)).await, Verdict::Committed));
    run
}

async fn append(store: &SqliteStore, append: Append) -> Verdict {
    store.append(vec![append]).await.verdicts.swap_remove(0)
}

async fn events(store: &SqliteStore, run: RunId) -> usize {
    store.read_events(run, 0, 1_000).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let file = file();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&file.path).await.unwrap());
    conformance::run_all(|| async { Subject::new(Arc::clone(&store)) }).await;
}

#[tokio::test]
async fn is_no_different_from_memory() {
    let file = file();
    let store = SqliteStore::open(&file.path).await.unwrap();
    for seed in 0..20 {
        let memory = MemoryStore::new(|| Timestamp::from_micros(1_700_000_000_000_000));
        conformance::differential(&memory, &store, seed).await;
    }
}

#[tokio::test]
async fn a_second_open_is_refused_until_the_first_is_gone() {
    let file = file();
    let first = SqliteStore::open(&file.path).await.unwrap();
    let other_name = file.path.with_file_name("link.db");
    std::os::unix::fs::symlink(&file.path, &other_name).unwrap();
    for path in [&file.path, &other_name] {
        let refused = SqliteStore::open(path).await.unwrap_err();
        assert!(matches!(refused, Error::Unavailable(_)), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("is in use by another Everstep process") && !text.contains('\n'), "{text}");
    }
    // Not even a clone keeps the others out longer than it lives.
    let clone = first.clone();
    drop(first);
    assert!(SqliteStore::open(&file.path).await.is_err());
    clone.close().await;
    drop(clone);
    SqliteStore::open(&file.path).await.unwrap();
}

#[tokio::test]
async fn everything_is_kept_when_the_file_is_opened_again() {
    let file = file();
    let mut runs = Vec::new();
    for _ in 0..3 {
        let store = SqliteStore::open(&file.path).await.unwrap();
        let run = started(&store).await;
        assert!(matches!(append(&store, steps(run, 2, 3, &[7; 50_000])).await, Verdict::Committed));
        assert!(store.create_namespace(&run.to_string(), "kept").await.unwrap());
        runs.push(run);
        for run in &runs {
            assert_eq!(events(&store, *run).await, 4);
            assert!(store.get_run(*run).await.unwrap().is_some());
            assert!(store.get_namespace(&run.to_string()).await.unwrap().is_some());
        }
        // Dropped, not closed, as when a process ends.
    }
}

#[tokio::test]
async fn a_read_only_store_reads_beside_a_server_and_without_one() {
    let file = file();
    let refused = SqliteStore::open_existing_read_only(&file.path).await.unwrap_err();
    assert!(
        matches!(refused, Error::Schema(_)) && refused.to_string().contains("no database at"),
        "{refused}"
    );
    let store = SqliteStore::open(&file.path).await.unwrap();
    let run = started(&store).await;
    let reader = SqliteStore::open_existing_read_only(&file.path).await.unwrap();
    assert_eq!(events(&reader, run).await, 1);
    assert!(matches!(append(&store, steps(run, 2, 1, b"1")).await, Verdict::Committed));
    assert_eq!(events(&reader, run).await, 2, "it sees what is committed later");
    drop((store, reader));
    let reader = SqliteStore::open_existing_read_only(&file.path).await.unwrap();
    assert_eq!(events(&reader, run).await, 2);
    let verdict = append(&reader, steps(run, 3, 1, b"1")).await;
    assert!(matches!(verdict, Verdict::Failed(Error::Refused(_))), "{verdict:?}");
    assert!(matches!(reader.delete_wakes(&[]).await, Err(Error::Refused(_))));
    assert!(matches!(reader.close_expired_sessions(1).await, Err(Error::Refused(_))));
    let writer = SqliteStore::open(&file.path).await.unwrap();
    assert_eq!(events(&writer, run).await, 2, "a reader does not lock the file");
}

#[tokio::test]
async fn what_is_no_everstep_database_is_refused_and_left_alone() {
    let file = file();
    let path = &file.path;
    std::fs::write(path, "this is a text, and longer than the header of a database\n".repeat(100)).unwrap();
    for result in [SqliteStore::open(path).await, SqliteStore::open_existing_read_only(path).await] {
        let refused = result.unwrap_err();
        assert!(matches!(refused, Error::Corrupt(_)), "{refused}");
        assert!(refused.to_string().contains("is not a SQLite database"), "{refused}");
    }
    assert!(std::fs::read_to_string(path).unwrap().starts_with("this is a text"));

    let foreign = path.with_file_name("foreign.db");
    let mut connection =
        SqliteConnectOptions::new().filename(&foreign).create_if_missing(true).connect().await.unwrap();
    sqlx::query("CREATE TABLE customers (name TEXT)").execute(&mut connection).await.unwrap();
    for result in [SqliteStore::open(&foreign).await, SqliteStore::open_existing_read_only(&foreign).await] {
        let refused = result.unwrap_err();
        assert!(matches!(refused, Error::Schema(_)), "{refused}");
        assert!(refused.to_string().contains("of another program"), "{refused}");
    }
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut connection).await.unwrap();
    assert_eq!(tables, 1);

    let nowhere = path.with_file_name("missing").join("everstep.db");
    let refused = SqliteStore::open(&nowhere).await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable(_)), "{refused}");
    let folder = SqliteStore::open(path.parent().unwrap()).await.unwrap_err();
    assert!(matches!(folder, Error::Unavailable(_)), "{folder}");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let file = file();
    SqliteStore::open(&file.path).await.unwrap().close().await;
    let mut connection = raw(&file.path).await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'future', TRUE, x'00', 0)",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    let results =
        [SqliteStore::open(&file.path).await, SqliteStore::open_existing_read_only(&file.path).await];
    for result in results {
        let refused = result.unwrap_err();
        assert!(matches!(refused, Error::Schema(_)), "{refused:?}");
        assert!(refused.to_string().contains("newer than this binary"), "{refused}");
    }
}

#[test]
fn versions_that_corrupt_a_wal_are_known() {
    for sound in ["3.51.3", "3.51.10", "3.52.0", "3.52", "4.0.0"] {
        assert!(is_sound(sound), "{sound}");
    }
    for unsound in ["3.51.2", "3.51", "3.7.0", "2.99.99", "", "three"] {
        assert!(!is_sound(unsound), "{unsound}");
    }
}

#[tokio::test]
async fn a_full_disk_fails_what_does_not_fit_and_nothing_else() {
    let file = file();
    let store = SqliteStore::open(&file.path).await.unwrap();
    let (small, large, last) = (started(&store).await, started(&store).await, started(&store).await);
    let pages = async |pragma: &'static str| {
        let mut held = store.writer().unwrap().lock().await.unwrap();
        sqlx::query(pragma).execute(held.connection().await.unwrap()).await.unwrap();
    };
    pages("PRAGMA max_page_count = 200").await;
    let batch = vec![steps(small, 2, 1, b"1"), steps(large, 2, 1, &[7; 2_000_000]), steps(last, 2, 1, b"1")];
    let verdicts = store.append(batch).await.verdicts;
    assert!(matches!(verdicts[0], Verdict::Committed), "{:?}", verdicts[0]);
    assert!(matches!(verdicts[1], Verdict::Failed(Error::Exhausted(_))), "{:?}", verdicts[1]);
    assert!(matches!(verdicts[2], Verdict::Committed), "{:?}", verdicts[2]);
    pages("PRAGMA max_page_count = 1000000").await;
    assert!(matches!(append(&store, steps(large, 2, 1, &[7; 2_000_000])).await, Verdict::Committed));
}

#[tokio::test]
async fn a_file_locked_by_another_program_is_unavailable_for_a_while() {
    let file = file();
    let store = SqliteStore::open(&file.path).await.unwrap();
    let run = started(&store).await;
    let mut other = raw(&file.path).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let reply = store.append(vec![steps(run, 2, 1, b"1")]).await;
    assert!(matches!(reply.verdicts[0], Verdict::Failed(Error::Unavailable(_))), "{:?}", reply.verdicts[0]);
    assert_eq!(reply.now, None);
    assert_eq!(events(&store, run).await, 1, "reads go on");
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    assert!(matches!(append(&store, steps(run, 2, 1, b"1")).await, Verdict::Committed));
}

#[tokio::test]
async fn an_error_at_commit_is_unknown_and_settled_by_the_same_append() {
    let file = file();
    let store = SqliteStore::open(&file.path).await.unwrap();
    let (run, taken) = (started(&store).await, started(&store).await);
    {
        // A constraint that SQLite looks at only when the transaction is about to be committed, on this
        // connection alone.
        let mut held = store.writer().unwrap().lock().await.unwrap();
        sqlx::raw_sql(
            "PRAGMA foreign_keys = ON;
             CREATE TEMP TABLE parents (id INTEGER PRIMARY KEY);
             CREATE TEMP TABLE children (id INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED);
             CREATE TEMP TRIGGER late AFTER INSERT ON main.events BEGIN INSERT INTO children VALUES (1); END;",
        )
        .execute(held.connection().await.unwrap())
        .await
        .unwrap();
    }
    let again = steps(run, 2, 2, b"1");
    let verdicts = store.append(vec![again.clone(), steps(taken, 1, 1, b"1")]).await.verdicts;
    assert!(matches!(verdicts[0], Verdict::Failed(Error::OutcomeUnknown(_))), "{:?}", verdicts[0]);
    assert!(matches!(verdicts[1], Verdict::Conflict), "what lost before stays lost: {:?}", verdicts[1]);
    // The connection is a new one; the log tells what became of it.
    assert!(matches!(append(&store, again.clone()).await, Verdict::Committed));
    assert!(matches!(append(&store, again).await, Verdict::Conflict));
    assert_eq!(events(&store, run).await, 3);
}

#[tokio::test]
async fn an_event_behind_a_gap_is_corruption_of_that_run_alone() {
    let file = file();
    let store = SqliteStore::open(&file.path).await.unwrap();
    let (torn, whole) = (started(&store).await, started(&store).await);
    let mut connection = raw(&file.path).await;
    sqlx::query(
        "INSERT INTO events (run_id, seq, at, epoch, command_id, kind, actor)
         VALUES (?, 3, 0, 0, x'00000000000000000000000000000000', 'RunTimedOut', 'system')",
    )
    .bind(torn.uuid())
    .execute(&mut connection)
    .await
    .unwrap();
    let verdicts = store.append(vec![steps(torn, 2, 2, b"1"), steps(whole, 2, 2, b"1")]).await.verdicts;
    assert!(matches!(verdicts[0], Verdict::Failed(Error::Corrupt(_))), "{:?}", verdicts[0]);
    assert!(matches!(verdicts[1], Verdict::Committed), "{:?}", verdicts[1]);
    let unread = store.read_events(torn, 0, 10).await.unwrap_err();
    assert!(matches!(&unread, Error::Corrupt(text) if text.contains("2 is missing")), "{unread}");
}

#[tokio::test]
async fn a_damaged_payload_or_row_is_corruption() {
    let file = file();
    let store = SqliteStore::open(&file.path).await.unwrap();
    let (payload, row) = (started(&store).await, started(&store).await);
    assert!(matches!(append(&store, steps(payload, 2, 1, &[7; 50_000])).await, Verdict::Committed));
    assert!(matches!(append(&store, steps(row, 2, 1, b"1")).await, Verdict::Committed));
    let mut connection = raw(&file.path).await;
    let refused = sqlx::query("UPDATE events SET kind = 'X'").execute(&mut connection).await.unwrap_err();
    assert!(refused.to_string().contains("history is only appended to"), "{refused}");
    let refused = sqlx::query("DELETE FROM payloads").execute(&mut connection).await.unwrap_err();
    assert!(refused.to_string().contains("history is only appended to"), "{refused}");
    sqlx::raw_sql(
        "DROP TRIGGER payloads_are_not_changed; DROP TRIGGER events_are_not_changed;
         UPDATE payloads SET data = zeroblob(50000);",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    sqlx::query("UPDATE events SET kind = 'RunPaused', attrs = NULL WHERE run_id = ? AND seq = 2")
        .bind(row.uuid())
        .execute(&mut connection)
        .await
        .unwrap();
    let damaged = store.read_events(payload, 0, 10).await.unwrap_err();
    assert!(matches!(&damaged, Error::Corrupt(text) if text.contains("payload of event 2")), "{damaged}");
    let unknown = store.read_events(row, 0, 10).await.unwrap_err();
    assert!(matches!(&unknown, Error::Corrupt(text) if text.contains("newer version")), "{unknown}");
}

#[tokio::test]
async fn an_append_outlives_its_caller() {
    let file = file();
    let store = SqliteStore::open(&file.path).await.unwrap();
    let run = started(&store).await;
    let abandoned = store.append(vec![steps(run, 2, 1, b"1")]);
    tokio::select! {
        biased;
        _ = abandoned => panic!("it cannot be done after one poll"),
        () = std::future::ready(()) => {}
    }
    // One thread, first come first served: the abandoned append is before this one.
    assert!(matches!(append(&store, steps(run, 2, 1, b"1")).await, Verdict::Conflict));
    assert_eq!(events(&store, run).await, 2);
}

#[tokio::test]
async fn a_person_can_read_it() {
    let file = file();
    let store = SqliteStore::open(&file.path).await.unwrap();
    let run = started(&store).await;
    let data = format!("\"{}\"", "a".repeat(40_000));
    assert!(matches!(append(&store, steps(run, 2, 1, data.as_bytes())).await, Verdict::Committed));
    let mut connection = raw(&file.path).await;
    let (at, kind, step, actor, attrs, payload): (String, String, String, String, String, String) =
        sqlx::query_as(
            "SELECT at, kind, step, actor, attrs, payload FROM events_readable WHERE run_id = ? AND seq = 2",
        )
        .bind(run.to_string())
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(at, "2023-11-14T22:13:20.000001Z");
    assert_eq!((kind.as_str(), step.as_str(), actor.as_str()), ("StepCompleted", "charge", "worker:w-1"));
    assert_eq!(attrs, "{\"elapsed_us\":9}");
    assert_eq!(payload, data);
    let steps: (String, String, String, i64) =
        sqlx::query_as("SELECT run_id, name, status, attempts FROM steps")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!(steps, (run.to_string(), "charge".to_owned(), "completed".to_owned(), 1));
    let shown: (String, String) = sqlx::query_as("SELECT run_id, started_at FROM runs_readable")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(shown, (run.to_string(), "2023-11-14T22:13:20.000001Z".to_owned()));
}
