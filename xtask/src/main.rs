//! The developer's commands: `cargo xtask ci`, `cargo xtask test`, `cargo xtask sim`,
//! `cargo xtask tidy`.
//!
//! What is *not* here: anything that the product needs at run time.

mod bench;
mod chaos;
mod ci;
mod drill;
mod gate;
#[path = "../../tests/src/servers/locate.rs"]
mod locate;
mod profile;
mod servers;
mod shell;
mod sim;
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
  drill upgrade        the previous release and this tree replace each other under load
    --from REV         which commit the previous release is; default: tests/upgrade/previous.txt
  sim                  many seeds of the simulation
    --seeds N --from S play N seeds, the first of them S
    --replay FILE      repeat the failure that a file holds, and tell all of it
    --release          optimised: worth its build from some ten thousand seeds on
  tidy                 the rules of the house that no compiler knows
    --bless            record the checksums of new migrations
  gate                 instruction counts of the paths that every step takes, against their baseline
    --bless            write the counts of now as the baseline
  bench ARGUMENTS      `everstep bench` with servers of its own
    --store KIND       postgres (with NATS), which is the default, or sqlite
    --disk-delay-us N  each flush to the disk takes N microseconds longer: what slower disks make of it
  profile WORKLOAD     where the server and the worker of `everstep bench` spend their time, with perf
    --store URL        a Postgres server; without it, a SQLite file
    --nats URL         with Postgres: NATS
    --concurrency C    clients: 64 for w1, 8 for fan-out, and 1 for w2, unless given
    --seconds N        length of the window
  chaos                one case of faults on real processes, then a verdict; exit 0 PASS, 1 FAIL, 4 INVALID
    --seed S           what everything random is drawn from
    --minutes M        how long faults happen; or --seconds N
    --store KIND       sqlite or postgres (with NATS)
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
        Some((command, rest)) if command == "bench" => bench::run(&root, &bench::Options::parse(rest)?),
        Some((command, rest)) if command == "chaos" => chaos::run(&root, rest),
        Some((command, rest)) if command == "test" => test::run(&root, &test::Options::parse(rest)?),
        Some((command, rest)) if command == "drill" => drill::run(&root, &drill::Options::parse(rest)?),
        Some((command, rest)) if command == "sim" => sim::run(&root, &sim::Options::parse(rest)?),
        Some((command, rest)) if command == "tidy" => match rest {
            [] => tidy::run(&root),
            [flag] if flag == "--bless" => tidy::bless(&root),
            _ => bail!("tidy takes only --bless\n\n{USAGE}"),
        },
        Some((command, rest)) if command == "gate" => match rest {
            [] => gate::run(&root, false),
            [flag] if flag == "--bless" => gate::run(&root, true),
            _ => bail!("gate takes only --bless\n\n{USAGE}"),
        },
        Some((command, rest)) if command == "profile" => profile::run(&root, &profile::Options::parse(rest)?),
        Some((command, _)) if ["help", "--help", "-h"].contains(&command.as_str()) => {
            eprint!("{USAGE}");
            Ok(())
        }
        Some((command, _)) => bail!("unknown command {command:?}\n\n{USAGE}"),
        None => bail!("no command\n\n{USAGE}"),
    }
}

fn target_folder(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder))
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
