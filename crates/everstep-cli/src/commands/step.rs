//! `everstep step …`: steps that wait for somebody.

use clap::Subcommand;
use everstep::Failure;
use everstep::client::StepResolution;
use serde_json::{Value, json};

use super::run::{Target, read_input};
use crate::fail::Fail;
use crate::json;
use crate::out::{self, Format};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List steps that wait for somebody, those of the oldest runs first
    List {
        /// How they stand
        #[arg(long, value_enum, default_value_t)]
        state: State,
        /// Only steps of this run: run id or workflow id
        #[arg(long)]
        run: Option<String>,
        /// How many at most
        #[arg(long, default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        target: Target,
    },
    /// End an attempt of a queued step well, by its task token
    Complete {
        /// What the step got as its task token
        token: String,
        /// What the step returns: JSON, @FILE with JSON, or - for standard input
        #[arg(long, default_value = "null", value_name = "JSON|@FILE|-")]
        result: String,
        #[command(flatten)]
        target: Target,
    },
    /// End an attempt of a queued step as failed, by its task token; its retry policy decides what follows
    Fail {
        /// What the step got as its task token
        token: String,
        /// Why
        #[arg(value_name = "KIND:MESSAGE")]
        failure: String,
        /// There is no use in another attempt
        #[arg(long = "final")]
        is_final: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Say that an attempt of a queued step lives, by its task token; prints whether somebody wants it to stop
    Heartbeat {
        /// What the step got as its task token
        token: String,
        /// How far it is, for the next attempt: JSON, @FILE with JSON, or - for standard input
        #[arg(long, default_value = "null", value_name = "JSON|@FILE|-")]
        details: String,
        #[command(flatten)]
        target: Target,
    },
    /// Say what became of a step in doubt; the run goes on with that
    #[command(group = clap::ArgGroup::new("said").required(true))]
    Resolve {
        /// Run id or workflow id
        run: String,
        /// Number of the step, as everstep step list shows it
        step: u32,
        /// It had its effect, with this result: JSON, @FILE with JSON, or - for standard input
        #[arg(long, group = "said", value_name = "JSON|@FILE|-")]
        completed: Option<String>,
        /// The step ends with this failure
        #[arg(long, group = "said", value_name = "KIND:MESSAGE")]
        failed: Option<String>,
        /// It had no effect, or another one does no harm: run the next attempt
        #[arg(long, group = "said")]
        retry: bool,
        /// Only if this is the attempt in doubt [default: whichever is]
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        attempt: u32,
        /// Why, for people
        #[arg(long, default_value = "")]
        note: String,
        /// Your id of this request: the same id is carried out once
        #[arg(long)]
        request_id: Option<String>,
        #[command(flatten)]
        target: Target,
    },
}

/// How a step stands.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum State {
    /// Its worker was lost in the middle of an attempt
    #[default]
    InDoubt,
    /// It waits for a worker of its queue, or for the instant of its next attempt
    Queued,
    /// A worker of its queue runs it, or it will be completed by its token
    Running,
}

impl Command {
    fn target(&self) -> &Target {
        match self {
            Self::List { target, .. }
            | Self::Complete { target, .. }
            | Self::Fail { target, .. }
            | Self::Heartbeat { target, .. }
            | Self::Resolve { target, .. } => target,
        }
    }
}

pub(crate) async fn run(command: Command) -> Result<(), Fail> {
    let address = command.target().address().to_owned();
    let done = tokio::select! {
        result = carry_out(command) => result,
        _ = tokio::signal::ctrl_c() => Err(Fail::interrupted()),
    };
    done.map_err(|fail| fail.at(&address))
}

async fn carry_out(command: Command) -> Result<(), Fail> {
    match command {
        Command::List { state: State::InDoubt, run, limit, target } => list(run, limit, &target).await,
        Command::List { state, run, limit, target } => {
            queued(matches!(state, State::Running), run, limit, &target).await
        }
        Command::Complete { token, result, target } => {
            Ok(target.client()?.complete_step(&token, &read_input(&result)?).await?)
        }
        Command::Fail { token, failure, is_final, target } => {
            let failure = Failure { non_retryable: is_final, ..failure_of(&failure)? };
            Ok(target.client()?.fail_step(&token, &failure).await?)
        }
        Command::Heartbeat { token, details, target } => {
            let stop = target.client()?.heartbeat_step(&token, &read_input(&details)?).await?;
            match target.output() {
                Format::Text => {
                    out::line(if stop { "stop: nobody wants the step any more" } else { "go on" })
                }
                Format::Json | Format::Jsonl => out::line(&json!({ "cancel_requested": stop }).to_string()),
            }
        }
        Command::Resolve { run, step, completed, failed, retry: _, attempt, note, request_id, target } => {
            let said = match (completed, failed) {
                (Some(result), _) => StepResolution::completed(step, &read_input(&result)?)?,
                (None, Some(failure)) => StepResolution::failed(step, failure_of(&failure)?),
                (None, None) => StepResolution::retry(step),
            };
            let mut said = said.attempt(attempt).note(note);
            if let Some(id) = request_id {
                said = said.request_id(id);
            }
            Ok(target.handle(&run)?.resolve_step(said).await?)
        }
    }
}

fn failure_of(text: &str) -> Result<Failure, Fail> {
    match text.split_once(':') {
        Some((kind, message)) if !kind.trim().is_empty() => {
            Ok(Failure::new(kind.trim(), message.trim()).non_retryable())
        }
        _ => Err(Fail::usage(format!("'{text}' is not KIND:MESSAGE"))),
    }
}

async fn list(run: Option<String>, limit: usize, target: &Target) -> Result<(), Fail> {
    let client = target.client()?;
    let run_id = match run {
        Some(run) => Some(target.run_id(&run).await?),
        None => None,
    };
    let page_size = i32::try_from(limit.clamp(1, 1_000)).unwrap_or(1_000);
    let (mut steps, mut token) = (Vec::new(), String::new());
    loop {
        let page = client.steps_in_doubt(run_id, page_size, &token).await?;
        steps.extend(page.steps);
        token = page.next_page_token;
        if token.is_empty() || steps.len() >= limit {
            break;
        }
    }
    steps.truncate(limit);
    match target.output() {
        Format::Json => out::json(&Value::Array(steps.iter().map(json::step_in_doubt).collect())),
        Format::Jsonl => steps.iter().try_for_each(|s| out::line(&json::step_in_doubt(s).to_string())),
        Format::Text => {
            out::line(&format!(
                "{:<36}  {:<24}  {:<5}  {:<20}  {:<7}  {:<9}  SINCE",
                "RUN", "WORKFLOW ID", "STEP", "NAME", "ATTEMPT", "POLICY"
            ))?;
            steps.iter().try_for_each(|s| {
                let since = json::time(s.since).get(..19).unwrap_or_default().replace('T', " ");
                let policy = s.policy.as_str();
                out::line(&format!(
                    "{:<36}  {:<24}  {:<5}  {:<20}  {:<7}  {policy:<9}  {since}",
                    s.run_id, s.workflow_id, s.step_id, s.name, s.attempt
                ))
            })
        }
    }
}

async fn queued(running: bool, run: Option<String>, limit: usize, target: &Target) -> Result<(), Fail> {
    let client = target.client()?;
    let run_id = match run {
        Some(run) => Some(target.run_id(&run).await?),
        None => None,
    };
    let (mut steps, mut token) = (Vec::new(), String::new());
    loop {
        let page = client.queued_steps(run_id, 1_000, &token).await?;
        steps.extend(page.steps.into_iter().filter(|step| step.running == running));
        token = page.next_page_token;
        if token.is_empty() || steps.len() >= limit {
            break;
        }
    }
    steps.truncate(limit);
    match target.output() {
        Format::Json => out::json(&Value::Array(steps.iter().map(json::queued_step).collect())),
        Format::Jsonl => steps.iter().try_for_each(|s| out::line(&json::queued_step(s).to_string())),
        Format::Text => {
            out::line(&format!(
                "{:<36}  {:<24}  {:<5}  {:<20}  {:<7}  {:<16}  {:<8}  SINCE",
                "RUN", "WORKFLOW ID", "STEP", "NAME", "ATTEMPT", "QUEUE", "PRIORITY"
            ))?;
            steps.iter().try_for_each(|s| {
                let since = s.since.map(json::time).unwrap_or_default();
                let since = since.get(..19).unwrap_or_default().replace('T', " ");
                out::line(&format!(
                    "{:<36}  {:<24}  {:<5}  {:<20}  {:<7}  {:<16}  {:<8}  {since}",
                    s.run_id, s.workflow_id, s.step_id, s.name, s.attempt, s.task_queue, s.priority
                ))
            })
        }
    }
}
