//! A film whose worker process is killed with signal 9: another process goes on behind the last heartbeat.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use everstep::{StepCtx, StepError, Worker};
use everstep_dispatch::InProcess;
use everstep_example_patterns::transcode::{Encoder, Film, QUEUE, Transcode, WORKFLOW, publish, transcode};
use everstep_store_sqlite::SqliteStore;
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use tokio::process::{Child, Command};

/// Where a worker process finds its server; without it, `worker_process` is no worker.
const SERVER: &str = "EVERSTEP_TEST_TRANSCODE_SERVER";
/// The file to which it adds a line for each part that it has made.
const MADE: &str = "EVERSTEP_TEST_TRANSCODE_MADE";
/// The part that it begins and never ends.
const STUCK_AT: &str = "EVERSTEP_TEST_TRANSCODE_STUCK_AT";

const PARTS: u32 = 12;

struct Files {
    made: PathBuf,
    stuck_at: Option<u32>,
}

impl Encoder for Files {
    async fn make(&self, _: &Film, part: u32) -> Result<(), StepError> {
        if self.stuck_at == Some(part) {
            std::future::pending::<()>().await;
        }
        let mut made = std::fs::OpenOptions::new().create(true).append(true).open(&self.made)?;
        writeln!(made, "{} {part}", std::process::id())?;
        Ok(())
    }
}

/// The worker process of the test below, and nothing when it is run as a test.
#[tokio::test]
async fn worker_process() -> anyhow::Result<()> {
    let Ok(address) = std::env::var(SERVER) else { return Ok(()) };
    let stuck_at = std::env::var(STUCK_AT).ok().map(|part| part.parse()).transpose()?;
    let files = Arc::new(Files { made: std::env::var(MADE)?.into(), stuck_at });
    let step = move |step: StepCtx, film| transcode(step, Arc::clone(&files), film);
    Worker::builder(address).task_queue(QUEUE).register_step::<Transcode, _, _>(step).build()?.run().await?;
    Ok(())
}

fn process(node: &RunningNode, made: &Path, stuck_at: Option<u32>) -> anyhow::Result<Child> {
    let mut process = Command::new(std::env::current_exe()?);
    process.args(["--exact", "patterns::transcode::worker_process"]).kill_on_drop(true);
    process.env(SERVER, &node.address).env(MADE, made);
    process.envs(stuck_at.map(|part| (STUCK_AT, part.to_string())));
    Ok(process.spawn()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_film_goes_on_behind_its_last_heartbeat_after_kill_9() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (database, made) = (folder.path().join("everstep.db"), folder.path().join("made"));
    let store = Arc::new(SqliteStore::open(&database).await?);
    let node = RunningNode::start(store, Arc::new(InProcess::new()), NodeSettings::default()).await?;
    let _flows = RunningWorker::start(node.worker().register(WORKFLOW, publish))?;
    let film = Film { name: "Metropolis".to_owned(), parts: PARTS };
    let run = node.client()?.workflow::<u32>(WORKFLOW).start(&film).await?;

    let mut first = process(&node, &made, Some(5))?;
    let pool = sqlx::SqlitePool::connect(&format!("sqlite:{}", database.display())).await?;
    let said = "SELECT count(*) FROM step_tasks WHERE details = CAST('5' AS BLOB)";
    while sqlx::query_scalar::<_, i64>(said).fetch_one(&pool).await? == 0 {
        anyhow::ensure!(first.try_wait()?.is_none(), "the worker process ended by itself");
    }
    let killed = first.id().ok_or_else(|| anyhow::anyhow!("it has ended"))?;
    first.kill().await?;

    let mut second = process(&node, &made, None)?;
    assert_eq!(run.result().await?, PARTS);
    let lines = std::fs::read_to_string(&made)?;
    let by = |who: u32| -> Vec<u32> {
        let lines = lines.lines().filter_map(|line| line.split_once(' '));
        lines.filter(|(pid, _)| *pid == who.to_string()).filter_map(|(_, part)| part.parse().ok()).collect()
    };
    let other = second.id().ok_or_else(|| anyhow::anyhow!("it has ended"))?;
    assert_eq!(by(killed), (0..5).collect::<Vec<_>>());
    assert_eq!(by(other), (5..PARTS).collect::<Vec<_>>());
    second.kill().await?;
    Ok(())
}
