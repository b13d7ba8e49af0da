//! `cargo xtask test`: the servers that the tests need, then cargo's own test run.

#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::bail;

use crate::{locate, servers, shell};

/// The part of the tests to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Only {
    Postgres,
    Nats,
    Simulation,
}

/// What was asked for on the command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) all: bool,
    pub(crate) no_install: bool,
    pub(crate) only: Option<Only>,
}

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let mut options = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--all" => options.all = true,
                "--no-install" => options.no_install = true,
                "--only" => options.only = Some(Only::parse(rest.next())?),
                other => bail!("unknown option {other:?}; test takes --all, --no-install and --only"),
            }
        }
        if options.all && options.only.is_some() {
            bail!("--all and --only exclude each other");
        }
        Ok(options)
    }

    fn needs(&self, server: Only) -> bool {
        self.all || self.only == Some(server)
    }
}

impl Only {
    fn parse(value: Option<&String>) -> anyhow::Result<Self> {
        match value.map(String::as_str) {
            Some("pg") => Ok(Self::Postgres),
            Some("nats") => Ok(Self::Nats),
            Some("sim") => Ok(Self::Simulation),
            Some(other) => bail!("--only takes pg, nats or sim, and not {other:?}"),
            None => bail!("--only needs a value: pg, nats or sim"),
        }
    }

    /// The arguments of `cargo test` that select this part.
    fn selection(self) -> &'static [&'static str] {
        match self {
            Self::Postgres => &["-p", "everstep-store-postgres", "-p", "everstep-tests"],
            Self::Nats => &["-p", "everstep-dispatch-nats", "-p", "everstep-tests"],
            Self::Simulation => &["-p", "everstep-tests", "--test", "sim"],
        }
    }
}

/// Runs the tests; the last thing on the screen is cargo's own summary.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let mut command = shell::cargo(root);
    let mut required = Vec::new();
    if options.needs(Only::Postgres) {
        command.env(locate::PG_VARIABLE, servers::postgres(root, !options.no_install)?);
        required.push("pg");
    }
    if options.needs(Only::Nats) {
        command.env(locate::NATS_VARIABLE, servers::nats(root, !options.no_install)?);
        required.push("nats");
    }
    if !required.is_empty() {
        command.env("EVERSTEP_REQUIRE", required.join(","));
    }
    if options.only != Some(Only::Simulation) {
        // Tests that kill servers and workers run the real binary, which `cargo test` does not build.
        shell::run(shell::cargo(root).args(["build", "--locked", "--workspace", "--bins"]))?;
    }
    command.args(["test", "--locked", "--no-fail-fast"]);
    match options.only {
        Some(only) => command.args(only.selection()),
        None => command.arg("--workspace"),
    };
    shell::run(&mut command)
}
