//! `everstep dev`: everything on this machine, data in a file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use everstep::{Client, Worker};
use everstep_example_summarize::Summarizer;

use crate::fail::Fail;
use crate::node::{self, Database, NodeOptions};
use crate::{json, out};

/// The default port: of `dev`, of `server`, and of every client.
pub(crate) const PORT: u16 = 7417;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Host the demo workflows too
    #[arg(long)]
    demo: bool,
    /// Database file, made if it is not there
    #[arg(long, env = "EVERSTEP_DB", default_value = ".everstep/everstep.db", value_name = "FILE")]
    pub(crate) db: PathBuf,
    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(long, env = "EVERSTEP_PORT", default_value_t = PORT)]
    port: u16,
    /// How long a worker may be silent before its runs go to another, 1s to 1h
    #[arg(long, env = "EVERSTEP_LEASE", default_value = "3s", value_parser = node::parse_lease)]
    lease: Duration,
}

pub(crate) async fn run(args: Args) -> Result<(), Fail> {
    node::make_folder(&args.db)?;
    let store = Database::Sqlite(args.db.clone()).open(false).await?;
    let options = NodeOptions {
        listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), args.port),
        lease: args.lease,
        allow_remote: false,
        nats_url: None,
        request_mib: node::REQUEST_MIB,
    };
    let node = node::listen(store, &options).await?;
    let address = format!("http://{}", node.address);
    let stop = node::stop_signal()?;
    out::note(&format!("Everstep listens on {address}"));
    out::note(&format!("Database: {}", args.db.display()));
    out::note("Try, in another terminal:");
    let at = if node.address.port() == PORT { String::new() } else { format!(" --address {address}") };
    for line in [
        format!("  everstep run start summarize --input '{{\"text\": \"Some text. It is short.\"}}'{at}"),
        format!("  everstep run list{at}"),
        format!("  everstep run history WORKFLOW_ID{at}"),
    ] {
        out::note(&line);
    }
    let (stopping, stopped) = tokio::sync::watch::channel(false);
    let worker = if args.demo {
        let worker = demo_worker(&address, &args.db)?;
        out::note("The demo worker hosts: summarize");
        let mut stop = stopped.clone();
        let log = tokio::spawn(live_log(address.clone()));
        let working = tokio::spawn(async move {
            let result = worker.run_until(async move {
                let _ = stop.wait_for(|s| *s).await;
            });
            let result = result.await;
            log.abort();
            result
        });
        Some(working)
    } else {
        None
    };
    node.serve(async {
        stop.await;
        // The worker says goodbye while there is a server to hear it.
        stopping.send_replace(true);
        if let Some(worker) = worker {
            let _ = worker.await;
        }
    })
    .await
}

/// The worker that `dev --demo` and the demos host.
pub(crate) fn demo_worker(address: &str, db: &Path) -> Result<Worker, Fail> {
    let cache = db.with_extension("cache");
    let tools = Summarizer::from_env(&cache).map_err(|e| Fail::refused(e.to_string()))?;
    Ok(everstep_example_summarize::register(Worker::builder(address), tools).build()?)
}

/// One line a step, for every run that is started from here on.
async fn live_log(address: String) {
    let Ok(client) = Client::connect(&address) else { return };
    let mut known = std::collections::BTreeSet::new();
    let filter = everstep::client::RunListFilter { page_size: 20, ..Default::default() };
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    let mut first = true;
    loop {
        ticks.tick().await;
        let Ok(page) = client.list(&filter, "").await else { continue };
        for run in page.runs.iter().rev() {
            if known.insert(run.run_id) && !first {
                tokio::spawn(follow(client.clone(), run.run_id));
            }
        }
        first = false;
    }
}

async fn follow(client: Client, run: everstep::RunId) {
    let handle = client.handle::<serde_json::Value>(run);
    let Ok(mut history) = handle.history(0, true).await else { return };
    while let Ok(Some(event)) = history.next().await {
        let short = run.to_string();
        out::note(&format!("{} {}", &short[short.len() - 8..], json::event_line(&event)));
    }
}
