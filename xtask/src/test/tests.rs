//! Tests of the command line of `cargo xtask test`.

use super::{Only, Options};

fn parse(line: &str) -> anyhow::Result<Options> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    Options::parse(&words)
}

#[test]
fn options_are_read() -> anyhow::Result<()> {
    assert_eq!(parse("")?, Options::default());
    assert_eq!(parse("--no-install --all")?, Options { all: true, no_install: true, only: None });
    for (name, only) in [("pg", Only::Postgres), ("nats", Only::Nats), ("sim", Only::Simulation)] {
        assert_eq!(parse(&format!("--only {name}"))?.only, Some(only));
    }
    Ok(())
}

#[test]
fn wrong_options_are_named() {
    for (line, part) in [
        ("--al", "\"--al\""),
        ("--only", "needs a value"),
        ("--only mysql", "\"mysql\""),
        ("--all --only pg", "exclude"),
    ] {
        let error = parse(line).expect_err(line).to_string();
        assert!(error.contains(part), "{line}: {error}");
    }
}

#[test]
fn a_part_needs_only_its_own_server() -> anyhow::Result<()> {
    let needs = |line: &str| -> anyhow::Result<(bool, bool)> {
        let options = parse(line)?;
        Ok((options.needs(Only::Postgres), options.needs(Only::Nats)))
    };
    assert_eq!(needs("")?, (false, false));
    assert_eq!(needs("--all")?, (true, true));
    assert_eq!(needs("--only pg")?, (true, false));
    assert_eq!(needs("--only nats")?, (false, true));
    assert_eq!(needs("--only sim")?, (false, false));
    Ok(())
}
