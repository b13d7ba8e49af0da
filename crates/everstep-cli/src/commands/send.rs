//! `everstep run signal` and `everstep run update`: what a run is sent, and the run that is started for it.

use std::time::Duration;

use clap::ValueEnum;
use everstep::client::Start;
use everstep::{RunId, UpdateError};
use serde_json::Value;

use super::run::{Target, print_value, read_input, under};
use crate::fail::Fail;
use crate::node;
use crate::out::{self, Format};

/// The run to start when no open run has the workflow id.
#[derive(Debug, clap::Args)]
pub(crate) struct ToStart {
    /// Start a run of this workflow when no open run has the workflow id
    #[arg(long, value_name = "WORKFLOW_TYPE")]
    start: Option<String>,
    /// Its input: JSON, @FILE with JSON, or - for standard input
    #[arg(long, default_value = "null", value_name = "JSON|@FILE|-", requires = "start")]
    start_input: String,
    /// Queue whose workers run it
    #[arg(long, default_value = "default", value_name = "QUEUE", requires = "start")]
    start_queue: String,
}

/// What to send, and to which run.
#[derive(Debug, clap::Args)]
pub(crate) struct Signal {
    /// Run id or workflow id
    run: String,
    /// Name that the workflow waits for
    name: String,
    /// The message: JSON, @FILE with JSON, or - for standard input
    #[arg(long, default_value = "null", value_name = "JSON|@FILE|-")]
    input: String,
    /// Your id of this signal: within its run it is received once [default: made up]
    #[arg(long)]
    request_id: Option<String>,
    #[command(flatten)]
    to_start: ToStart,
    #[command(flatten)]
    pub(crate) target: Target,
}

/// What to have done, and by which run.
#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    /// Run id or workflow id
    run: String,
    /// Name of the handler
    name: String,
    /// Its input: JSON, @FILE with JSON, or - for standard input
    #[arg(long, default_value = "null", value_name = "JSON|@FILE|-")]
    input: String,
    /// Your id of this update: within its run it takes effect once [default: made up]
    #[arg(long)]
    id: Option<String>,
    /// What to wait for: that the run's code agrees, or what it answers
    #[arg(long, value_enum, default_value_t = Stage::Completed)]
    wait: Stage,
    /// How long to wait for the run's code to agree, at most 60s
    #[arg(long, default_value = "10s", value_parser = node::parse_patience)]
    timeout: Duration,
    #[command(flatten)]
    to_start: ToStart,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stage {
    Accepted,
    Completed,
}

impl ToStart {
    /// The start, if one was asked for.
    fn of(&self, target: &Target, workflow_id: &str) -> Result<Option<(Start<Value>, Value)>, Fail> {
        let Some(workflow_type) = &self.start else { return Ok(None) };
        if workflow_id.parse::<RunId>().is_ok_and(|id| id.uuid().get_version_num() == 7) {
            let problem = format!("'{workflow_id}' is a run id; --start needs the workflow id");
            return Err(Fail::usage(problem));
        }
        let input = read_input(&self.start_input)?;
        let start = target.client()?.workflow(workflow_type.clone()).task_queue(self.start_queue.clone());
        Ok(Some((start.workflow_id(workflow_id), input)))
    }
}

impl Signal {
    pub(super) async fn send(self) -> Result<(), Fail> {
        let input = read_input(&self.input)?;
        match self.to_start.of(&self.target, &self.run)? {
            None => {
                let signal = self.target.handle(&self.run)?.signal(&self.name, &input);
                Ok(under(signal, self.request_id).await?)
            }
            Some((start, workflow_input)) => {
                let start = match self.request_id {
                    Some(id) => start.request_id(id),
                    None => start,
                };
                start.signal_with_start(&self.name, &input, &workflow_input).await?;
                Ok(())
            }
        }
    }
}

impl Update {
    pub(super) async fn send(self) -> Result<(), Fail> {
        let input = read_input(&self.input)?;
        let output = self.target.output();
        let handle = match self.to_start.of(&self.target, &self.run)? {
            Some((mut start, workflow_input)) => {
                if let Some(id) = self.id {
                    start = start.request_id(id);
                }
                start.start_with_update(&self.name, &input, &workflow_input, self.timeout).await?
            }
            None => {
                let mut update = self.target.handle(&self.run)?.update::<Value>(&self.name, &input);
                if let Some(id) = self.id {
                    update = update.request_id(id);
                }
                update.deadline(self.timeout).start().await?
            }
        };
        match (self.wait, output) {
            (Stage::Accepted, Format::Text) => out::line(handle.id()),
            (Stage::Accepted, _) => print_value(&Value::from(handle.id()), output),
            (Stage::Completed, _) => print_value(&handle.result().await.map_err(refused)?, output),
        }
    }
}

fn refused(error: UpdateError) -> Fail {
    match error {
        UpdateError::Client(error) => Fail::from(error),
        failed @ UpdateError::Failed(_) => Fail::refused(failed.to_string()),
    }
}
