//! Private Postgres and NATS servers for tests: real processes on loopback, in folders of their own.
//!
//! A server is killed and its folder removed when its value is dropped, and also when the whole test
//! process dies, however it dies: a small guard process waits on a pipe that only the test process
//! holds open. Nothing here connects to a server that somebody else runs.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use everstep_tests::servers::{PostgresServer, require};
//! if !require("pg")? {
//!     return Ok(());
//! }
//! let url = PostgresServer::shared()?.create_database().await?;
//! # let _ = url; Ok(())
//! # }
//! ```

mod guard;
mod locate;
mod nats;
mod ports;
mod postgres;
mod process;

#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

pub use nats::NatsServer;
pub use ports::free_port;
pub use postgres::{PostgresOptions, PostgresServer};

/// Lists the servers (`pg`, `nats`, comma separated) whose absence fails a test instead of skipping it.
pub const REQUIRE_VARIABLE: &str = "EVERSTEP_REQUIRE";

const HOW_TO_INSTALL: &str = "run `cargo xtask test --all`, which finds or installs it";

/// Whether the server `name` (`pg` or `nats`) is on this machine; a test returns early on `false`.
///
/// A missing server is announced on stderr past libtest's capture, so that a skip is never silent.
///
/// # Errors
/// When the server is missing and `EVERSTEP_REQUIRE` names it, when a variable that points to it is
/// wrong, and when `name` or an entry of `EVERSTEP_REQUIRE` is no known server.
pub fn require(name: &str) -> anyhow::Result<bool> {
    let required = std::env::var(REQUIRE_VARIABLE).unwrap_or_default();
    let found = locate_server(name)?;
    let available = is_available(name, found.as_deref(), &required)?;
    if !available {
        // Straight to the stream: libtest swallows what the print macros write in a passing test.
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        writeln!(std::io::stderr(), "SKIPPED {test}: no server {name:?} on this machine; {HOW_TO_INSTALL}")?;
    }
    Ok(available)
}

fn locate_server(name: &str) -> anyhow::Result<Option<PathBuf>> {
    match name {
        "pg" => locate::find_postgres(&repository()),
        "nats" => locate::find_nats(&repository()),
        other => bail!("unknown test server {other:?}: say \"pg\" or \"nats\""),
    }
}

fn is_available(name: &str, found: Option<&Path>, required: &str) -> anyhow::Result<bool> {
    let required: Vec<&str> = required.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    if let Some(unknown) = required.iter().find(|entry| !["pg", "nats"].contains(entry)) {
        bail!("{REQUIRE_VARIABLE} names the unknown server {unknown:?}: it takes \"pg\" and \"nats\"");
    }
    if found.is_none() && required.contains(&name) {
        bail!("this test needs the server {name:?}, which was not found: {HOW_TO_INSTALL}");
    }
    Ok(found.is_some())
}

/// The folder of the workspace, where the test command keeps the tools that it installed.
fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// A fresh folder for one server.
fn server_folder(kind: &str) -> anyhow::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(&format!("everstep-{kind}-"))
        .tempdir()
        .with_context(|| format!("cannot make a temporary folder for {kind}; check TMPDIR and free space"))
}
