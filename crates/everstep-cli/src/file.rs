//! The configuration file: option names and values, below the environment and above the defaults.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::fail::Fail;

/// Settings of the configuration file, by option name.
pub(crate) type Settings = BTreeMap<String, String>;

/// Reads the file that `--config` or `EVERSTEP_CONFIG` names, or `everstep.toml` if it is there.
pub(crate) fn settings(args: impl Iterator<Item = OsString>) -> Result<Settings, Fail> {
    let args: Vec<String> = args.map(|a| a.to_string_lossy().into_owned()).collect();
    let flag = args.iter().position(|a| a == "--config").and_then(|i| args.get(i + 1).cloned());
    let flag = flag.or_else(|| args.iter().find_map(|a| a.strip_prefix("--config=").map(str::to_owned)));
    let named = flag.or_else(|| std::env::var("EVERSTEP_CONFIG").ok().filter(|v| !v.is_empty()));
    let (path, required) = match named {
        Some(path) => (PathBuf::from(path), true),
        None => (PathBuf::from("everstep.toml"), false),
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => return Ok(Settings::new()),
        Err(e) => return Err(Fail::usage(format!("{}: {e}", path.display()))),
    };
    parse(&text).map_err(|(line, problem)| Fail::usage(format!("{}:{line}: {problem}", path.display())))
}

/// The settings in a file's text, or the line and what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<Settings, (usize, String)> {
    let line_of = |at: usize| 1 + text.bytes().take(at).filter(|b| *b == b'\n').count();
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| (e.span().map_or(1, |s| line_of(s.start)), e.message().to_owned()))?;
    let line_with = |key: &str| {
        text.lines()
            .position(|l| l.trim_start().trim_start_matches('"').starts_with(key))
            .map_or(1, |i| i + 1)
    };
    let mut settings = Settings::new();
    for (key, value) in table {
        let Some((_, wanted)) = OPTIONS.iter().find(|(name, _)| *name == key) else {
            let known: Vec<&str> = OPTIONS.iter().map(|(name, _)| *name).collect();
            let problem = format!("unknown setting '{key}'; known are {}", known.join(", "));
            return Err((line_with(&key), problem));
        };
        let text = match (wanted, value) {
            (Kind::Text, toml::Value::String(text)) => text,
            (Kind::Number, toml::Value::Integer(n)) => n.to_string(),
            (Kind::Switch, toml::Value::Boolean(b)) => b.to_string(),
            (wanted, other) => {
                let problem = format!("'{key}' is a {}; it must be {}", other.type_str(), wanted.name());
                return Err((line_with(&key), problem));
            }
        };
        settings.insert(key, text);
    }
    Ok(settings)
}

/// What a setting is written as.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Text,
    Number,
    Switch,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text in quotes",
            Self::Number => "a number",
            Self::Switch => "true or false",
        }
    }
}

/// What the file may set: options that describe a place, not a request.
const OPTIONS: &[(&str, Kind)] = &[
    ("address", Kind::Text),
    ("namespace", Kind::Text),
    ("database-url", Kind::Text),
    ("nats-url", Kind::Text),
    ("listen", Kind::Text),
    ("db", Kind::Text),
    ("port", Kind::Number),
    ("lease", Kind::Text),
    ("request-mib", Kind::Number),
    ("insecure-allow-remote", Kind::Switch),
];

/// The arguments, with the file's settings for options that neither flag nor environment gives.
pub(crate) fn with_settings(
    args: impl Iterator<Item = OsString>,
    settings: &Settings,
    command: &clap::Command,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    let mut at = command;
    for word in args.iter().skip(1).filter_map(|a| a.to_str()) {
        if let Some(sub) = at.find_subcommand(word) {
            at = sub;
        }
    }
    let mut extra = Vec::new();
    for (name, value) in settings {
        let Some(option) = at.get_arguments().find(|a| a.get_long() == Some(name)) else { continue };
        let flag = format!("--{name}");
        let given =
            args.iter().any(|a| a.to_str().is_some_and(|a| a == flag || a.starts_with(&format!("{flag}="))));
        let in_environment =
            option.get_env().is_some_and(|e| std::env::var_os(e).is_some_and(|v| !v.is_empty()));
        if given || in_environment {
            continue;
        }
        if option.get_action().takes_values() {
            extra.push(OsString::from(format!("{flag}={value}")));
        } else if value == "true" {
            extra.push(OsString::from(flag));
        }
    }
    // In front of a `--` that ends the options.
    let end = args.iter().position(|a| a == "--").unwrap_or(args.len());
    args.splice(end..end, extra);
    args
}

#[cfg(test)]
mod tests;
