//! `everstep demo …`: the main job on a file, and the worker of the crash demo.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use everstep::{Client, RunHandle};
use everstep_example_summarize::{Input, Output, WORKFLOW};

use crate::fail::Fail;
use crate::node::{self, Database, NodeOptions};
use crate::{json, out};

/// Largest text that fits a payload once it is JSON.
const TEXT_BYTES_MAX: u64 = 2 * 1024 * 1024 - 4_096;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Summarize a text file with a durable workflow, and show its steps
    Summarize(SummarizeArgs),
    /// Kill the worker and the server while a run is under way, and check what is left
    Crash(super::crash::Args),
    /// The worker of the crash demo
    #[command(hide = true)]
    CrashWorker(super::crash::WorkerArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct SummarizeArgs {
    /// A text file
    file: PathBuf,
    /// Sentences to pick
    #[arg(long, default_value_t = 5)]
    sentences: usize,
    /// Use this server and its workers; without it, everything runs in this process
    #[arg(long, env = "EVERSTEP_ADDRESS", value_name = "URL")]
    address: Option<String>,
    /// Database file, made if it is not there
    #[arg(long, env = "EVERSTEP_DB", default_value = ".everstep/everstep.db", value_name = "FILE")]
    db: PathBuf,
}

pub(crate) async fn run(command: Command) -> Result<(), Fail> {
    match command {
        Command::Summarize(args) => summarize(args).await,
        Command::Crash(args) => super::crash::run(args).await,
        Command::CrashWorker(args) => super::crash::work(args).await,
    }
}

/// Reads a text file, refusing what is none with one clear line.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> Result<String, Fail> {
    let bad = |problem: String| Fail::refused(format!("{}: {problem}", path.display()));
    let kind = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?;
    if !kind.is_file() {
        return Err(bad("is not a regular file".to_owned()));
    }
    if kind.len() > bytes_max {
        return Err(bad(format!("has {} bytes; at most {bytes_max} fit", kind.len())));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| bad(e.to_string()))?;
    file.take(bytes_max).read_to_end(&mut bytes).map_err(|e| bad(e.to_string()))?;
    String::from_utf8(bytes).map_err(|_| bad("is not UTF-8 text".to_owned()))
}

async fn summarize(args: SummarizeArgs) -> Result<(), Fail> {
    let text = read_text(&args.file, TEXT_BYTES_MAX)?;
    let input = Input { text, prompt: None, sentences: Some(args.sentences) };
    if let Some(address) = &args.address {
        return show(address, &input, &args.file).await;
    }
    node::make_folder(&args.db)?;
    let store = Database::Sqlite(args.db.clone()).open(false).await?;
    let options = NodeOptions {
        listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
        lease: Duration::from_secs(3),
        allow_remote: false,
        nats_url: None,
        request_mib: node::REQUEST_MIB,
    };
    let node = node::listen(store, &options).await?;
    let address = format!("http://{}", node.address);
    let worker = super::dev::demo_worker(&address, &args.db)?;
    let (stop_worker, worker_stopped) = tokio::sync::oneshot::channel::<()>();
    let (stop_node, node_stopped) = tokio::sync::oneshot::channel::<()>();
    let working = tokio::spawn(worker.run_until(async {
        let _ = worker_stopped.await;
    }));
    let serving = async {
        node.serve(async {
            let _ = node_stopped.await;
        })
        .await
    };
    let showing = async {
        let shown = tokio::select! {
            shown = show(&address, &input, &args.file) => shown,
            _ = tokio::signal::ctrl_c() => Err(Fail::interrupted()),
        };
        drop(stop_worker);
        let _ = working.await;
        drop(stop_node);
        shown
    };
    let (served, shown) = tokio::join!(serving, showing);
    shown.and(served)
}

async fn show(address: &str, input: &Input, file: &Path) -> Result<(), Fail> {
    let client = Client::connect(address)?;
    let run: RunHandle<Output> = client.workflow(WORKFLOW).start(input).await?;
    let mut history = run.history(0, true).await?;
    while let Some(event) = history.next().await? {
        out::note(&json::event_line(&event));
    }
    let output = run.result().await.map_err(|e| Fail::refused(format!("{}: {e}", file.display())))?;
    let cached = if output.cached { ", from the cache" } else { "" };
    out::note(&format!(
        "{} characters read; answered by {} ({}){cached}",
        output.characters, output.answered_by, output.model
    ));
    for attempt in output.attempts.iter().filter(|a| a.outcome != "ok") {
        out::note(&format!(
            "attempt {} at {} failed: {}",
            attempt.attempt, attempt.provider, attempt.message
        ));
    }
    out::line(&output.summary)
}
