//! `everstep namespace …`: what the runs of a namespace get where request and code are silent.

use std::time::Duration;

use clap::Subcommand;
use everstep::RetryPolicy;
use everstep::client::{NamespaceDescription, NamespaceUpdate};
use serde_json::{Value, json};

use super::later::parse_retry;
use crate::fail::Fail;
use crate::node::parse_duration;
use crate::out::{self, Format};

#[derive(Debug, clap::Args)]
pub(crate) struct At {
    /// The server
    #[arg(long, env = "EVERSTEP_ADDRESS", default_value = "http://127.0.0.1:7417", value_name = "URL")]
    address: String,
    /// How to write data
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a namespace
    Create {
        /// Its name
        name: String,
        /// For people
        #[arg(long, default_value = "")]
        description: String,
        #[command(flatten)]
        at: At,
    },
    /// List all, by name
    List {
        #[command(flatten)]
        at: At,
    },
    /// Show one
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        at: At,
    },
    /// Change what its runs get that start from now on
    Set {
        /// Its name
        name: String,
        #[command(flatten)]
        settings: Box<Settings>,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Settings {
    /// For people
    #[arg(long)]
    description: Option<String>,
    /// The retry policy of steps whose code sets none: the attempts in all, or like
    /// attempts=5,initial=1s,coefficient=2,maximum=1m,final=KIND; none takes it away
    #[arg(long, value_parser = parse_policy, value_name = "POLICY|none")]
    step_retry: Option<Setting<RetryPolicy>>,
    /// The retry policy of runs that are started without one
    #[arg(long, value_parser = parse_policy, value_name = "POLICY|none")]
    run_retry: Option<Setting<RetryPolicy>>,
    /// The longest life of runs that are started without one, like 30s or 2h; none takes it away
    #[arg(long, value_parser = parse_timeout, value_name = "DURATION|none")]
    run_timeout: Option<Setting<Duration>>,
    /// Your id of this request: within 24 h it takes effect once
    #[arg(long)]
    request_id: Option<String>,
}

/// A value, or none on purpose.
#[derive(Clone, Debug, PartialEq)]
struct Setting<T>(Option<T>);

fn parse_policy(text: &str) -> Result<Setting<RetryPolicy>, String> {
    if text == "none" { Ok(Setting(None)) } else { parse_retry(text).map(|policy| Setting(Some(policy))) }
}

fn parse_timeout(text: &str) -> Result<Setting<Duration>, String> {
    if text == "none" {
        Ok(Setting(None))
    } else {
        parse_duration(text).map(|timeout| Setting(Some(timeout)))
    }
}

impl Command {
    fn at(&self) -> &At {
        match self {
            Self::Create { at, .. } | Self::List { at } | Self::Show { at, .. } | Self::Set { at, .. } => at,
        }
    }
}

pub(crate) async fn run(command: Command) -> Result<(), Fail> {
    let address = command.at().address.clone();
    let done = tokio::select! {
        result = carry_out(command) => result,
        _ = tokio::signal::ctrl_c() => Err(Fail::interrupted()),
    };
    done.map_err(|fail| fail.at(&address))
}

async fn carry_out(command: Command) -> Result<(), Fail> {
    let client = everstep::Client::connect(&command.at().address)?;
    match command {
        Command::Create { name, description, at: _ } => {
            Ok(client.create_namespace(&name, &description).await?)
        }
        Command::List { at } => {
            let all = client.list_namespaces().await?;
            match at.output {
                Format::Json => out::json(&Value::Array(all.iter().map(value).collect())),
                Format::Jsonl => all.iter().try_for_each(|n| out::line(&value(n).to_string())),
                Format::Text => all
                    .iter()
                    .try_for_each(|n| out::line(format!("{:<24}  {}", n.name, n.description).trim_end())),
            }
        }
        Command::Show { name, at } => print(&client.namespace_description(&name).await?, at.output),
        Command::Set { name, settings, at } => {
            let updated = client.update_namespace(settings.of(&name)?).await?;
            print(&updated, at.output)
        }
    }
}

impl Settings {
    fn of(self, name: &str) -> Result<NamespaceUpdate, Fail> {
        let Self { description, step_retry, run_retry, run_timeout, request_id } = self;
        if description.is_none() && step_retry.is_none() && run_retry.is_none() && run_timeout.is_none() {
            return Err(Fail::usage(
                "there is nothing to set: give --description, --step-retry, --run-retry or --run-timeout",
            ));
        }
        let mut update = NamespaceUpdate::of(name);
        if let Some(text) = description {
            update = update.description(text);
        }
        if let Some(Setting(policy)) = step_retry {
            update = update.default_step_retry(policy.as_ref());
        }
        if let Some(Setting(policy)) = run_retry {
            update = update.default_run_retry(policy.as_ref());
        }
        if let Some(Setting(timeout)) = run_timeout {
            update = update.default_run_timeout(timeout);
        }
        if let Some(id) = request_id {
            update = update.request_id(id);
        }
        Ok(update)
    }
}

fn value(namespace: &NamespaceDescription) -> Value {
    let policy = |policy: &Option<RetryPolicy>| {
        policy.as_ref().map(|p| {
            json!({
                "initial_interval_ms": p.initial_interval.as_micros() as f64 / 1_000.0,
                "backoff_coefficient": p.backoff_coefficient,
                "maximum_interval_ms": p.maximum_interval.as_micros() as f64 / 1_000.0,
                "maximum_attempts": p.maximum_attempts, "non_retryable_kinds": p.non_retryable_kinds,
            })
        })
    };
    json!({
        "name": namespace.name, "description": namespace.description,
        "default_step_retry": policy(&namespace.default_step_retry),
        "default_run_retry": policy(&namespace.default_run_retry),
        "default_run_timeout_ms": namespace.default_run_timeout.map(|t| t.as_secs_f64() * 1_000.0),
    })
}

fn print(namespace: &NamespaceDescription, output: Format) -> Result<(), Fail> {
    let value = value(namespace);
    match (output, &value) {
        (Format::Json, value) => out::json(value),
        (Format::Text, Value::Object(fields)) => {
            fields.iter().filter(|(_, v)| !v.is_null() && **v != json!("")).try_for_each(|(name, v)| {
                let text = v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned);
                out::line(format!("{name:<22} {text}").trim_end())
            })
        }
        (_, value) => out::line(&value.to_string()),
    }
}
