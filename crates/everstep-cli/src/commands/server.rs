//! `everstep server`: a production node.

use std::net::SocketAddr;
use std::time::Duration;

use crate::fail::Fail;
use crate::node::{self, Database, NodeOptions};
use crate::out;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the log is: postgres://USER@HOST/NAME, or sqlite:FILE for a single machine
    #[arg(long, env = "EVERSTEP_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Database,
    /// NATS for several nodes: nats://HOST:PORT; without it this node is the only one
    #[arg(long, env = "EVERSTEP_NATS_URL", value_name = "URL", hide_env_values = true)]
    nats_url: Option<String>,
    /// Address to listen on
    #[arg(long, env = "EVERSTEP_LISTEN", default_value = "127.0.0.1:7417", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// How long a worker may be silent before its runs go to another, 1s to 1h
    #[arg(long, env = "EVERSTEP_LEASE", default_value = "10s", value_parser = node::parse_lease)]
    lease: Duration,
    /// What requests under way may take in memory, in MiB
    #[arg(long, env = "EVERSTEP_REQUEST_MIB", default_value_t = node::REQUEST_MIB, value_name = "MIB",
          value_parser = clap::value_parser!(u32).range(8..=1_048_576))]
    request_mib: u32,
    /// Listen beyond loopback although there is no authentication yet
    #[arg(long)]
    insecure_allow_remote: bool,
    /// Accept a Postgres that does not sync to disk: a power failure may lose what was acknowledged
    #[arg(long)]
    allow_fsync_off: bool,
}

pub(crate) async fn run(args: Args) -> Result<(), Fail> {
    if matches!(args.database_url, Database::Sqlite(_)) && args.nats_url.is_some() {
        return Err(Fail::usage("a SQLite file is for one node: leave out --nats-url, or use Postgres"));
    }
    let store = args.database_url.open(args.allow_fsync_off).await?;
    let options = NodeOptions {
        listen: args.listen,
        lease: args.lease,
        allow_remote: args.insecure_allow_remote,
        nats_url: args.nats_url,
        request_mib: args.request_mib,
    };
    let node = node::listen(store, &options).await?;
    let stop = node::stop_signal()?;
    out::note(&format!("Everstep listens on http://{}", node.address));
    node.serve(stop).await
}
