//! The developer's commands: `cargo xtask ci`, `cargo xtask test`, `cargo xtask tidy`.
//!
//! What is *not* here: anything that the product needs at run time.

mod ci;
#[path = "../../tests/src/servers/locate.rs"]
mod locate;
mod servers;
mod shell;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

const USAGE: &str = "\
usage: cargo xtask <command>

  ci                   everything that a change must pass: format, tidy, lints, tests, docs
  test                 the tests; those that need Postgres or NATS run if these are found
    --all              find or install Postgres and NATS, and fail where a test cannot have them
    --no-install       install nothing; with --all, say what is missing and fail
    --only pg|nats|sim only the tests of Postgres, of NATS, or the simulation
  tidy                 the rules of the house that no compiler knows
    --bless            record the checksums of new migrations
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let root = repository()?;
    match arguments.split_first() {
        Some((command, rest)) if command == "ci" => {
            no_arguments(rest)?;
            ci::run(&root)
        }
        Some((command, rest)) if command == "test" => test::run(&root, &test::Options::parse(rest)?),
        Some((command, rest)) if command == "tidy" => match rest {
            [] => tidy::run(&root),
            [flag] if flag == "--bless" => tidy::bless(&root),
            _ => bail!("tidy takes only --bless\n\n{USAGE}"),
        },
        Some((command, _)) if ["help", "--help", "-h"].contains(&command.as_str()) => {
            eprint!("{USAGE}");
            Ok(())
        }
        Some((command, _)) => bail!("unknown command {command:?}\n\n{USAGE}"),
        None => bail!("no command\n\n{USAGE}"),
    }
}

fn no_arguments(rest: &[String]) -> anyhow::Result<()> {
    match rest.first() {
        None => Ok(()),
        Some(argument) => bail!("unexpected argument {argument:?}\n\n{USAGE}"),
    }
}

fn repository() -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask is not in a workspace")?.to_path_buf())
}
