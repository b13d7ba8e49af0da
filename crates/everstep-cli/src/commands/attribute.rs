//! `everstep attribute …`, and attributes on the command line of other commands.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use clap::Subcommand;
use everstep::client::{AttributeFilter, Comparison, Start};
use everstep::{Attribute, AttributeType, Client, IntoAttribute};
use serde_json::{Value, json};

use super::run::Target;
use crate::fail::Fail;
use crate::out::{self, Format};

type Declared = BTreeMap<String, AttributeType>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Declare a search attribute in the namespace; its type never changes
    Add {
        /// Its name
        name: String,
        /// Its type: keyword, keywords, int, float, bool or time
        #[arg(value_parser = parse_type)]
        kind: AttributeType,
        #[command(flatten)]
        target: Target,
    },
    /// List the search attributes of the namespace
    List {
        #[command(flatten)]
        target: Target,
    },
}

/// What a run that starts says about itself.
#[derive(Debug, clap::Args)]
pub(crate) struct ToNote {
    /// A search attribute that the namespace declares; give it again for more
    #[arg(long, value_name = "NAME=VALUE")]
    attribute: Vec<String>,
    /// An entry of the memo, which is shown with the run; give it again for more
    #[arg(long, value_name = "NAME=JSON")]
    memo: Vec<String>,
}

pub(crate) async fn run(command: Command) -> Result<(), Fail> {
    let (Command::Add { target, .. } | Command::List { target }) = &command;
    let address = target.address().to_owned();
    let done = tokio::select! {
        result = carry_out(command) => result,
        _ = tokio::signal::ctrl_c() => Err(Fail::interrupted()),
    };
    done.map_err(|fail| fail.at(&address))
}

async fn carry_out(command: Command) -> Result<(), Fail> {
    match command {
        Command::Add { name, kind, target } => {
            target.client()?.add_search_attributes([(name, kind)]).await?;
            Ok(())
        }
        Command::List { target } => {
            let declared = target.client()?.search_attributes().await?;
            let value: serde_json::Map<String, Value> =
                declared.iter().map(|(name, kind)| (name.clone(), json!(kind.as_str()))).collect();
            match target.output() {
                Format::Json => out::json(&value.into()),
                Format::Jsonl => out::line(&Value::from(value).to_string()),
                Format::Text => declared
                    .iter()
                    .try_for_each(|(name, kind)| out::line(&format!("{:<9}  {name}", kind.as_str()))),
            }
        }
    }
}

fn parse_type(text: &str) -> Result<AttributeType, String> {
    let known = || AttributeType::ALL.map(AttributeType::as_str).join(", ");
    AttributeType::parse(text).ok_or_else(|| format!("unknown type; known are {}", known()))
}

impl ToNote {
    /// Adds it to a start. Values are read as the types that the namespace declares.
    pub(super) async fn of<R: serde::de::DeserializeOwned>(
        self,
        client: &Client,
        mut start: Start<R>,
    ) -> Result<Start<R>, Fail> {
        for entry in &self.memo {
            let (name, value) = entry.split_once('=').ok_or_else(|| Fail::usage("--memo takes NAME=JSON"))?;
            let value: Value = serde_json::from_str(value)
                .map_err(|e| Fail::usage(format!("--memo {name} is not JSON: {e}")))?;
            start = start.memo(name, &value);
        }
        if self.attribute.is_empty() {
            return Ok(start);
        }
        let declared = client.search_attributes().await?;
        for entry in &self.attribute {
            let (name, value) =
                entry.split_once('=').ok_or_else(|| Fail::usage("--attribute takes NAME=VALUE"))?;
            start = start.attribute(name, read(&declared, name, value).map_err(Fail::usage)?);
        }
        Ok(start)
    }
}

/// Reads the conditions of a list, such as `amount>=10`.
pub(super) async fn filters(client: &Client, conditions: &[String]) -> Result<Vec<AttributeFilter>, Fail> {
    if conditions.is_empty() {
        return Ok(Vec::new());
    }
    let declared = client.search_attributes().await?;
    let mut filters = Vec::new();
    for condition in conditions {
        let (name, op, text) = split(condition).ok_or_else(|| {
            Fail::usage(format!("--where '{condition}' is not NAME OP VALUE with one of = != < <= > >="))
        })?;
        let value = match declared.get(name) {
            // One of them is looked for.
            Some(AttributeType::Keywords) => Attribute::Keyword(text.to_owned()),
            _ => read(&declared, name, text).map_err(Fail::usage)?,
        };
        filters.push(AttributeFilter::new(name, op, value));
    }
    Ok(filters)
}

fn split(condition: &str) -> Option<(&str, Comparison, &str)> {
    let at = condition.find(['=', '!', '<', '>'])?;
    let (name, rest) = condition.split_at(at);
    let operators = [
        ("!=", Comparison::Ne),
        ("<=", Comparison::Le),
        (">=", Comparison::Ge),
        ("=", Comparison::Eq),
        ("<", Comparison::Lt),
        (">", Comparison::Gt),
    ];
    let (op, value) = operators.into_iter().find_map(|(text, op)| Some((op, rest.strip_prefix(text)?)))?;
    Some((name.trim(), op, value.trim()))
}

/// A value of the declared type; of a name that is not declared a keyword, which the server refuses with the name that
/// is most like it.
fn read(declared: &Declared, name: &str, text: &str) -> Result<Attribute, String> {
    let kind = declared.get(name).copied().unwrap_or(AttributeType::Keyword);
    let value = match kind {
        AttributeType::Keyword => text.into_attribute(),
        AttributeType::Keywords => {
            text.split(',').filter(|t| !t.is_empty()).collect::<Vec<_>>().into_attribute()
        }
        AttributeType::Int => text.parse::<i64>().ok().and_then(IntoAttribute::into_attribute),
        AttributeType::Float => text.parse::<f64>().ok().and_then(IntoAttribute::into_attribute),
        AttributeType::Bool => text.parse::<bool>().ok().and_then(IntoAttribute::into_attribute),
        AttributeType::Time => text.parse::<DateTime<Utc>>().ok().and_then(IntoAttribute::into_attribute),
    };
    let hint = if kind == AttributeType::Time { ", like 2026-11-21T17:00:00Z" } else { "" };
    value.ok_or_else(|| {
        format!("'{text}' is no value for {name}, which is declared as {}{hint}", kind.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_split_at_the_operator() {
        let cases = [
            ("amount>=10", Some(("amount", Comparison::Ge, "10"))),
            ("amount <= 10", Some(("amount", Comparison::Le, "10"))),
            ("a>b=c", Some(("a", Comparison::Gt, "b=c"))),
            ("customer=a<b", Some(("customer", Comparison::Eq, "a<b"))),
            ("customer!=acme", Some(("customer", Comparison::Ne, "acme"))),
            ("customer", None),
            ("customer!acme", None),
        ];
        for (text, expected) in cases {
            assert_eq!(split(text), expected, "{text}");
        }
    }

    #[test]
    fn values_are_read_as_the_declared_type() {
        let declared: Declared = AttributeType::ALL.into_iter().map(|k| (k.as_str().to_owned(), k)).collect();
        let kind = |name, text| read(&declared, name, text).map(|value| value.kind().as_str().to_owned());
        for (name, text) in [
            ("keyword", "7"),
            ("keywords", "a,b"),
            ("int", "-7"),
            ("float", "1e3"),
            ("bool", "true"),
            ("time", "2026-11-21T17:00:00+01:00"),
        ] {
            assert_eq!(kind(name, text).as_deref(), Ok(name));
        }
        for (name, text) in [("int", "1.5"), ("float", "NaN"), ("bool", "yes"), ("time", "today")] {
            assert!(kind(name, text).is_err(), "{name} {text}");
        }
        assert_eq!(kind("unknown", "7").as_deref(), Ok("keyword"));
    }
}
