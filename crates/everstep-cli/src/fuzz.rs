//! What a person may type or put into the settings, and what a server may send: shown or refused, never a panic.

use std::time::Duration;

use bolero::{check, produce};
use clap::{CommandFactory as _, Parser as _};
use everstep::client::RunDescription;
use everstep_core::{Payload, RunId, RunStatus, Timestamp};
use everstep_fuzz::bytes;

use crate::node::{Database, parse_duration};
use crate::{file, json};

const ITERATIONS: usize = 20_000;

/// `sample` bent as the input says, as text.
fn bent(sample: &str, input: &[u8]) -> String {
    String::from_utf8_lossy(&everstep_fuzz::bent(sample.as_bytes(), input)).into_owned()
}

#[test]
fn settings() {
    let sample = "address = \"http://127.0.0.1:7417\"\nport = 7417\n# a comment\nnamespace = 'default'\n";
    check!().with_iterations(ITERATIONS).with_generator(bytes(24)).for_each(|input: &Vec<u8>| {
        let text = bent(sample, input);
        match file::parse(&text) {
            Ok(settings) => assert!(settings.values().all(|v| v.len() <= text.len().max(20))),
            Err((line, problem)) => {
                assert!(
                    line >= 1 && line <= text.lines().count() + 1 && !problem.is_empty(),
                    "{line} {text:?}"
                );
            }
        }
    });
}

#[test]
fn durations() {
    check!().with_iterations(ITERATIONS).with_generator(bytes(9)).for_each(|input: &Vec<u8>| {
        for sample in ["500ms", "18446744073709551615h"] {
            let text = bent(sample, input);
            if let Ok(duration) = parse_duration(&text) {
                assert!(text.starts_with(|c: char| c.is_ascii_digit()), "{text:?} is {duration:?}");
            }
        }
    });
    assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7_200)));
}

#[test]
fn databases() {
    check!().with_iterations(ITERATIONS).with_generator(bytes(12)).for_each(|input: &Vec<u8>| {
        for sample in ["sqlite:runs.db", "postgres://a@b/c"] {
            let _ = bent(sample, input).parse::<Database>();
        }
    });
}

#[test]
fn what_a_server_says() {
    let numbers = produce::<(i64, i32, i64)>();
    check!().with_iterations(ITERATIONS).with_generator((numbers, bytes(16))).for_each(
        |((seconds, nanos, micros), data)| {
            let run_id = RunId::from_uuid(uuid::Uuid::nil());
            let mut said = RunDescription {
                run_id,
                status: RunStatus::Running,
                in_doubt: Vec::new(),
                search_attributes: Default::default(),
                memo: Default::default(),
                run: Default::default(),
            };
            said.run.started_at = Some(prost_types::Timestamp { seconds: *seconds, nanos: *nanos });
            said.run.closed_at = Some(prost_types::Timestamp { seconds: *seconds >> 20, nanos: *nanos });
            let shown = json::run(&said);
            assert!(shown["started_at"].is_string());
            assert!(!json::time(Timestamp::from_micros(*micros)).is_empty());
            let encoding = if data.len() % 2 == 0 { Payload::JSON.to_owned() } else { String::new() };
            let _ = json::payload(&Payload { encoding, data: data.clone().into() });
        },
    );
}

/// A verb: the words that lead to it, and the names of its options; a positional argument has none.
type Verb = (Vec<String>, Vec<Option<String>>);

fn verbs(command: &clap::Command, path: &[String], all: &mut Vec<Verb>) {
    if command.get_subcommands().next().is_none() {
        let names = command.get_arguments().map(|arg| arg.get_long().map(str::to_owned));
        return all.push((path.to_vec(), names.collect()));
    }
    for inner in command.get_subcommands() {
        let path: Vec<String> = path.iter().cloned().chain([inner.get_name().to_owned()]).collect();
        verbs(inner, &path, all);
    }
}

/// Values that an argument of some verb is made for.
const VALUES: [&str; 16] = [
    "order",
    "1",
    "30s",
    "null",
    "attempts=5,initial=1s,coefficient=2,maximum=1m,final=KIND",
    "amount>=10",
    "customer=acme",
    "Io:reset",
    "keyword",
    "running",
    "json",
    "none",
    "http://127.0.0.1:1",
    "sqlite:x.db",
    "*",
    "2.5",
];

/// Every verb with some of its arguments, each with a value that is bent: it is read, or refused as usage.
#[test]
fn command_lines() {
    let mut all = Vec::new();
    verbs(&crate::Cli::command(), &["everstep".to_owned()], &mut all);
    assert!(all.len() > 30, "{}", all.len());
    let generator = (produce::<u8>(), produce::<Vec<(u8, u8)>>().with().len(0..=12_usize), bytes(12));
    // Clap makes its tables anew for each of them.
    check!().with_iterations(ITERATIONS / 4).with_generator(generator).for_each(|(verb, choices, edits)| {
        let (path, arguments) = &all[usize::from(*verb) % all.len()];
        let mut line = path.clone();
        for (choice, value) in choices {
            let value = bent(VALUES[usize::from(*value) % VALUES.len()], edits);
            match arguments.get(usize::from(*choice) % (arguments.len() + 1)) {
                Some(Some(long)) if value.is_empty() => line.push(format!("--{long}")),
                Some(Some(long)) => line.push(format!("--{long}={value}")),
                _ => line.push(value),
            }
        }
        if let Err(error) = crate::Cli::try_parse_from(&line) {
            assert!(matches!(error.exit_code(), 0 | 2), "{line:?}: {error}");
            assert!(!crate::without_secrets(error).to_string().is_empty(), "{line:?}");
        }
    });
}
