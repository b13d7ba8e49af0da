//! `cargo xtask sim`: more seeds of the simulation than a test run plays, or one failure again.
//!
//! What is *not* here: the simulation, which is the test `sim` of `tests/`.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::shell;

/// The test that plays seeds.
const TEST: &str = "every_run_ends_as_predicted_whatever_is_lost";

/// What was asked for on the command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    seeds: Option<u64>,
    from: Option<u64>,
    replay: Option<OsString>,
    release: bool,
}

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let mut options = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--seeds" => options.seeds = Some(number(value()?)?),
                "--from" => options.from = Some(number(value()?)?),
                "--replay" => options.replay = Some(value()?.into()),
                "--release" => options.release = true,
                other => bail!("unknown option {other:?}; sim takes --seeds, --from, --replay and --release"),
            }
        }
        if options.replay.is_some() && (options.seeds.is_some() || options.from.is_some()) {
            bail!("--replay repeats one seed: it takes neither --seeds nor --from");
        }
        if options.seeds == Some(0) {
            bail!("--seeds 0 would prove nothing");
        }
        Ok(options)
    }
}

fn number(text: &str) -> anyhow::Result<u64> {
    text.parse().with_context(|| format!("{text:?} is not a number"))
}

/// Plays the seeds; failures say how to repeat them.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let mut command = shell::cargo(root);
    command.args(["test", "--locked", "-p", "everstep-tests", "--test", "sim"]);
    if options.release {
        command.arg("--release");
    }
    command.args(["--", "--exact", TEST, "--nocapture"]);
    if let Some(file) = &options.replay {
        let file = Path::new(file).canonicalize().context("there is no such replay file")?;
        command.env("EVERSTEP_SIM_REPLAY", file);
    }
    if let Some(seeds) = options.seeds {
        command.env("EVERSTEP_SIM_SEEDS", seeds.to_string());
    }
    if let Some(from) = options.from {
        command.env("EVERSTEP_SIM_FROM", from.to_string());
    }
    shell::run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::Options;

    fn parse(line: &str) -> anyhow::Result<Options> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn seeds_and_replays_are_told_apart() -> anyhow::Result<()> {
        let many = Options { seeds: Some(7), from: Some(3), ..Options::default() };
        assert_eq!(parse("--seeds 7 --from 3")?, many);
        assert_eq!(
            parse("--replay a.json")?,
            Options { replay: Some("a.json".into()), ..Options::default() }
        );
        assert_eq!(parse("")?, Options::default());
        for bad in ["--replay a --seeds 1", "--seeds", "--seeds x", "--seeds 0", "--what"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}
