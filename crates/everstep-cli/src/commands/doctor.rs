//! `everstep doctor`: what a node needs, looked at one by one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use everstep_dispatch_nats::{NatsDispatch, NatsOptions};
use tokio::net::TcpListener;

use crate::fail::Fail;
use crate::node::Database;
use crate::out;

/// Further apart than this, people misread times; nothing depends on it.
const SKEW_WARN: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The database: postgres://USER@HOST/NAME or sqlite:FILE
    #[arg(
        long,
        env = "EVERSTEP_DATABASE_URL",
        default_value = "sqlite:.everstep/everstep.db",
        value_name = "URL",
        hide_env_values = true
    )]
    database_url: Database,
    /// NATS, if there are several nodes
    #[arg(long, env = "EVERSTEP_NATS_URL", value_name = "URL", hide_env_values = true)]
    nats_url: Option<String>,
    /// Port that a node would listen on
    #[arg(long, env = "EVERSTEP_PORT", default_value_t = super::dev::PORT)]
    port: u16,
}

pub(crate) async fn run(args: Args) -> Result<(), Fail> {
    let mut failed = 0;
    let mut say = |ok: Result<String, String>| match ok {
        Ok(text) => out::line(&format!("ok    {text}")),
        Err(text) => {
            failed += 1;
            out::line(&format!("FAIL  {text}"))
        }
    };
    let absent = matches!(&args.database_url, Database::Sqlite(path) if !path.exists());
    if absent {
        say(Ok("database: the file is not there yet; everstep dev makes it".to_owned()))?;
    } else {
        let checked = args.database_url.check().await;
        let opened = match checked {
            Ok(()) => args.database_url.open_read_only().await,
            Err(error) => Err(error),
        };
        match opened {
            Err(error) => say(Err(format!("database: {error}")))?,
            Ok(store) => {
                say(Ok("database: reachable, at this version's schema".to_owned()))?;
                match store.now().await {
                    Err(error) => say(Err(format!("clock: {error}")))?,
                    Ok(now) => {
                        let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                        let database = Duration::from_micros(u64::try_from(now.as_micros()).unwrap_or(0));
                        let skew = host.abs_diff(database);
                        let text = format!("clock: {} ms from the database's", skew.as_millis());
                        say(if skew > SKEW_WARN { Err(text) } else { Ok(text) })?;
                    }
                }
            }
        }
    }
    if let Some(url) = &args.nats_url {
        say(match NatsDispatch::connect(url, NatsOptions::default()).await {
            Ok(_) => Ok("NATS: reachable, JetStream answers".to_owned()),
            Err(error) => Err(format!("NATS: {error}")),
        })?;
    }
    say(match TcpListener::bind(("127.0.0.1", args.port)).await {
        Ok(_) => Ok(format!("port {}: free", args.port)),
        Err(error) => Err(format!("port {}: {error}; is a node running already?", args.port)),
    })?;
    if failed > 0 { Err(Fail::refused(format!("{failed} checks failed"))) } else { Ok(()) }
}
