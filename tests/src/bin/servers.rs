//! A private Postgres that waits for its disk, and a private NATS, for measurements: prints their addresses, a line
//! each, and ends them when its input ends.

use std::io::{Read as _, Write as _};

use everstep_tests::servers::{NatsServer, PostgresOptions, PostgresServer};

/// What a benchmark's Postgres is given beyond the defaults: its cache and its log must not be the limit.
const SETTINGS: [(&str, &str); 2] = [("shared_buffers", "256MB"), ("max_wal_size", "4GB")];

fn main() -> anyhow::Result<()> {
    let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let postgres =
        PostgresServer::start_with(PostgresOptions { fsync: true, settings, ..PostgresOptions::default() })?;
    let nats = NatsServer::start()?;
    writeln!(std::io::stdout(), "{}\n{}", postgres.url("postgres"), nats.url())?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
