//! `cargo xtask bench`: `everstep bench`, built for release, with servers of its own; with a slower disk, if asked.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail, ensure};

use crate::{locate, servers, shell};

/// What was asked for on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    sqlite: bool,
    /// How much longer each flush to the disk takes, in microseconds.
    disk_delay: Option<u32>,
    /// For `everstep bench`.
    rest: Vec<String>,
}

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let mut options = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--store" => {
                    options.sqlite = match value()?.as_str() {
                        "sqlite" => true,
                        "postgres" => false,
                        other => bail!("no store {other:?}: sqlite or postgres"),
                    }
                }
                "--disk-delay-us" => {
                    options.disk_delay = Some(value()?.parse().context("--disk-delay-us")?);
                }
                "--database-url" | "--nats-url" => bail!("cargo xtask bench starts servers of its own"),
                _ => options.rest.push(argument.clone()),
            }
        }
        Ok(options)
    }
}

pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    shell::run(shell::cargo(root).args(["build", "--locked", "--release", "-p", "everstep-cli"]))?;
    let delay = options.disk_delay.map(|delay| Delay::compile(root, delay)).transpose()?;
    let mut bench = Command::new(crate::target_folder(root).join("release/everstep"));
    bench.arg("bench").args(&options.rest);
    let servers = if options.sqlite {
        if let Some(delay) = &delay {
            delay.put_into(&mut bench);
        }
        None
    } else {
        let servers = Servers::start(root, delay.as_ref())?;
        bench.args(["--database-url", &servers.postgres, "--nats-url", &servers.nats]);
        Some(servers)
    };
    let done = shell::run(&mut bench);
    drop(servers);
    done
}

/// The shim that makes flushes slower, compiled where another user's Postgres can read it.
struct Delay {
    folder: PathBuf,
    micros: u32,
}

impl Delay {
    fn compile(root: &Path, micros: u32) -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("everstep-delay-{}", std::process::id()));
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let delay = Self { folder, micros };
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-shared", "-fPIC", "-o"]).arg(delay.object());
        shell::run(cc.arg(root.join("tests/shim/durable.c")).args(["-ldl", "-lpthread"]))?;
        Ok(delay)
    }

    fn object(&self) -> PathBuf {
        self.folder.join("durable.so")
    }

    fn put_into(&self, command: &mut Command) {
        command.env("LD_PRELOAD", self.object()).env("DURABLE_DELAY_US", self.micros.to_string());
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A private Postgres and NATS, which end with this value.
struct Servers {
    process: Child,
    postgres: String,
    nats: String,
}

impl Servers {
    fn start(root: &Path, delay: Option<&Delay>) -> anyhow::Result<Self> {
        shell::run(shell::cargo(root).args([
            "build",
            "--locked",
            "-p",
            "everstep-tests",
            "--bin",
            "servers",
        ]))?;
        let mut command = Command::new(crate::target_folder(root).join("debug/servers"));
        command.env(locate::PG_VARIABLE, servers::postgres(root, true)?);
        command.env(locate::NATS_VARIABLE, servers::nats(root, true)?);
        if let Some(delay) = delay {
            delay.put_into(&mut command);
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the servers")?;
        let mut lines = BufReader::new(process.stdout.take().context("no output")?).lines();
        let mut address = || lines.next().transpose().ok().flatten().unwrap_or_default();
        let (postgres, nats) = (address(), address());
        let servers = Self { process, postgres, nats };
        ensure!(!servers.nats.is_empty(), "the servers did not start");
        Ok(servers)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // Its input ends, and it ends with its servers.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Options> {
        Options::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_not_ours_is_the_benchs() -> anyhow::Result<()> {
        let options = parse("--store sqlite --seconds 3 --disk-delay-us 60 --workload w1,w2")?;
        let rest = ["--seconds", "3", "--workload", "w1,w2"].map(str::to_owned).to_vec();
        assert_eq!(options, Options { sqlite: true, disk_delay: Some(60), rest });
        assert!(parse("--store oracle").is_err());
        assert!(parse("--disk-delay-us").is_err());
        assert!(parse("--database-url postgres://there").is_err());
        Ok(())
    }
}
