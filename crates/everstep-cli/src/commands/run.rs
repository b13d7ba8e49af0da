//! `everstep run …`: start, show and steer runs.

use std::io::Read;
use std::time::Duration;

use clap::Subcommand;
use everstep::client::{RunListFilter, RunPage, RunRequest, StepInDoubt};
use everstep::{Client, RunHandle, RunId, RunStatus};
use serde_json::{Value, json};

use super::attribute::{self, ToNote};
use super::later::Later;
use super::{children, export, send};
use crate::fail::Fail;
use crate::out::{self, Format};
use crate::{json, node};

/// Largest input that is read; a payload may hold 2 MiB.
const INPUT_BYTES_MAX: u64 = 3 * 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The server
    #[arg(long, env = "EVERSTEP_ADDRESS", default_value = "http://127.0.0.1:7417", value_name = "URL")]
    address: String,
    /// The namespace
    #[arg(long, env = "EVERSTEP_NAMESPACE", default_value = "default")]
    namespace: String,
    /// How to write data
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a run
    Start {
        /// Which workflow
        workflow_type: String,
        /// Your business key for it [default: made up]
        #[arg(long)]
        workflow_id: Option<String>,
        /// Queue whose workers run it
        #[arg(long, default_value = "default")]
        task_queue: String,
        /// Its input: JSON, @FILE with JSON, or - for standard input
        #[arg(long, default_value = "null", value_name = "JSON|@FILE|-")]
        input: String,
        /// Your id of this request: the same id starts one run only
        #[arg(long)]
        request_id: Option<String>,
        /// Its longest life, like 30s or 2h
        #[arg(long, value_parser = node::parse_duration)]
        run_timeout: Option<Duration>,
        #[command(flatten)]
        later: Later,
        #[command(flatten)]
        note: ToNote,
        /// Wait for its result and print that
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        target: Target,
    },
    /// List runs, newest first
    List {
        /// Only this workflow type
        #[arg(long)]
        workflow_type: Option<String>,
        /// Only these: running, blocked, completed, failed, canceled, terminated, timed_out, continued
        #[arg(long, value_parser = parse_status)]
        status: Vec<RunStatus>,
        /// Only runs whose search attribute stands so, like 'amount>=10'; give it again for more conditions
        #[arg(long = "where", value_name = "NAME OP VALUE")]
        conditions: Vec<String>,
        /// Only children of this run: run id or workflow id
        #[arg(long, value_name = "RUN")]
        parent: Option<String>,
        /// Only runs that wait for this build, which nobody connected has [default with the flag alone: any]
        #[arg(long, value_name = "BUILD", num_args = 0..=1, default_missing_value = "*")]
        waits_for_build: Option<String>,
        /// How many at most
        #[arg(long, default_value_t = 20)]
        limit: usize,
        #[command(flatten)]
        target: Target,
    },
    /// Show one run
    Show {
        /// Run id or workflow id
        run: String,
        #[command(flatten)]
        target: Target,
    },
    /// Print a run's events
    History {
        /// Run id or workflow id
        run: String,
        /// Only events after this seq
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Go on until the run ends
        #[arg(long)]
        follow: bool,
        /// Then the events of the runs that follow it
        #[arg(long)]
        chain: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Watch a run's steps until it ends
    Watch {
        /// Run id or workflow id
        run: String,
        #[command(flatten)]
        target: Target,
    },
    /// Wait for a run's result and print it; exit 1 if it did not complete
    Result {
        /// Run id or workflow id
        run: String,
        #[command(flatten)]
        target: Target,
    },
    /// Send a run a message, or start one that has it
    Signal(send::Signal),
    /// Have a run's code do something and print what it answers, or start a run that does
    Update(send::Update),
    /// Ask a run's code for a value and print it; nothing is recorded
    Query {
        /// Run id or workflow id
        run: String,
        /// Name of the query; everstep.waits shows what the code waits for
        name: String,
        /// Its input: JSON, @FILE with JSON, or - for standard input
        #[arg(long, default_value = "null", value_name = "JSON|@FILE|-")]
        input: String,
        /// How long to wait for the answer, at most 60s
        #[arg(long, default_value = "10s", value_parser = node::parse_patience)]
        timeout: Duration,
        #[command(flatten)]
        target: Target,
    },
    /// Write a run, or every open run, to a file that everstep replay reads
    Export(export::Args),
    /// Ask a run to stop in its own time
    Cancel {
        /// Run id or workflow id
        run: String,
        /// Why, for people
        #[arg(long, default_value = "")]
        reason: String,
        /// Your id of this request: within its run it takes effect once [default: made up]
        #[arg(long)]
        request_id: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Stop a run now
    Terminate {
        /// Run id or workflow id
        run: String,
        /// Why, for people
        #[arg(long, default_value = "")]
        reason: String,
        /// Your id of this request: within its run it takes effect once [default: made up]
        #[arg(long)]
        request_id: Option<String>,
        #[command(flatten)]
        target: Target,
    },
}

impl Command {
    fn target(&self) -> &Target {
        match self {
            Self::Start { target, .. }
            | Self::List { target, .. }
            | Self::Show { target, .. }
            | Self::History { target, .. }
            | Self::Watch { target, .. }
            | Self::Result { target, .. }
            | Self::Query { target, .. }
            | Self::Cancel { target, .. }
            | Self::Terminate { target, .. } => target,
            Self::Export(args) => &args.target,
            Self::Signal(args) => &args.target,
            Self::Update(args) => &args.target,
        }
    }
}

pub(crate) async fn run(command: Command) -> Result<(), Fail> {
    let address = command.target().address.clone();
    perform(command).await.map_err(|fail| fail.at(&address))
}

async fn perform(command: Command) -> Result<(), Fail> {
    tokio::select! {
        result = carry_out(command) => result,
        _ = tokio::signal::ctrl_c() => Err(Fail::interrupted()),
    }
}

async fn carry_out(command: Command) -> Result<(), Fail> {
    match command {
        Command::Start {
            workflow_type,
            workflow_id,
            task_queue,
            input,
            request_id,
            run_timeout,
            later,
            note,
            wait,
            target,
        } => {
            let input = read_input(&input)?;
            let client = target.client()?;
            let start = client.workflow::<Value>(workflow_type).task_queue(task_queue);
            let mut start = note.of(&client, later.of(start)).await?;
            if let Some(id) = workflow_id {
                start = start.workflow_id(id);
            }
            if let Some(id) = request_id {
                start = start.request_id(id);
            }
            if let Some(timeout) = run_timeout {
                start = start.run_timeout(timeout);
            }
            let handle = start.start(&input).await?;
            print_started(&handle, wait, target.output).await
        }
        Command::List { workflow_type, status, conditions, parent, waits_for_build, limit, target } => {
            let attributes = attribute::filters(&target.client()?, &conditions).await?;
            let parent = match parent {
                Some(run) => Some(target.run_id(&run).await?),
                None => None,
            };
            let filter = RunListFilter {
                workflow_type,
                statuses: status,
                attributes,
                parent,
                waits_for_build,
                ..RunListFilter::default()
            };
            list(filter, limit, &target).await
        }
        Command::Show { run, target } => show(&target, &run).await,
        Command::History { run, after, follow, chain, target } => {
            history(&target, &run, Events { after, follow, chain }).await
        }
        Command::Watch { run, target } => watch(&target, &run).await,
        Command::Result { run, target } => print_result(&target.handle(&run)?, target.output).await,
        Command::Signal(signal) => signal.send().await,
        Command::Update(update) => update.send().await,
        Command::Query { run, name, input, timeout, target } => {
            let input = read_input(&input)?;
            let answer: Value = target.handle(&run)?.query_with_deadline(&name, &input, timeout).await?;
            print_value(&answer, target.output)
        }
        Command::Export(args) => export::run(args).await,
        Command::Cancel { run, reason, request_id, target } => {
            Ok(under(target.handle(&run)?.cancel(&reason), request_id).await?)
        }
        Command::Terminate { run, reason, request_id, target } => {
            Ok(under(target.handle(&run)?.terminate(&reason), request_id).await?)
        }
    }
}

async fn print_started(handle: &RunHandle<Value>, wait: bool, output: Format) -> Result<(), Fail> {
    if wait {
        return print_result(handle, output).await;
    }
    let description = handle.describe().await?;
    match output {
        Format::Text => out::line(&description.run.run_id),
        Format::Json => out::json(&json::run(&description)),
        Format::Jsonl => out::line(&json::run(&description).to_string()),
    }
}

/// The request under an id, if one is given.
pub(super) fn under(request: RunRequest, request_id: Option<String>) -> RunRequest {
    match request_id {
        Some(id) => request.request_id(id),
        None => request,
    }
}

impl Target {
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn output(&self) -> Format {
        self.output
    }

    pub(super) fn client(&self) -> Result<Client, Fail> {
        Ok(Client::connect(&self.address)?.namespace(self.namespace.clone()))
    }

    /// The run that is meant, which a workflow id names only for now.
    pub(super) async fn run_id(&self, run: &str) -> Result<RunId, Fail> {
        match run.parse() {
            Ok(run_id) => Ok(run_id),
            Err(_) => Ok(self.handle(run)?.describe().await?.run_id),
        }
    }

    /// A UUID is a run id, all else a workflow id.
    pub(super) fn handle(&self, run: &str) -> Result<RunHandle<Value>, Fail> {
        let client = self.client()?;
        Ok(match run.parse() {
            Ok(run_id) => client.handle(run_id),
            Err(_) => client.latest(run),
        })
    }
}

fn parse_status(text: &str) -> Result<RunStatus, String> {
    let known = || RunStatus::ALL.map(RunStatus::as_str).join(", ");
    RunStatus::parse(text).ok_or_else(|| format!("unknown status; known are {}", known()))
}

fn says_something(value: &Value) -> bool {
    !value.is_null() && *value != json!("") && *value != json!([]) && *value != json!({})
}

/// JSON from the command line, a file, or standard input.
pub(super) fn read_input(given: &str) -> Result<Value, Fail> {
    let (source, text) = match given.strip_prefix('@') {
        Some(path) => (path.to_owned(), crate::commands::demo::read_text(path.as_ref(), INPUT_BYTES_MAX)?),
        None if given == "-" => {
            let mut text = String::new();
            let read = std::io::stdin().take(INPUT_BYTES_MAX + 1).read_to_string(&mut text);
            read.map_err(|e| Fail::refused(format!("standard input: {e}")))?;
            ("standard input".to_owned(), text)
        }
        None => {
            let start: String = given.chars().take(40).collect();
            (format!("'{start}'"), given.to_owned())
        }
    };
    if text.len() as u64 > INPUT_BYTES_MAX {
        return Err(Fail::refused(format!("{source} holds more than {INPUT_BYTES_MAX} bytes")));
    }
    serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|e| {
        Fail::usage(format!("{source} is not JSON: {e}; a text needs quotes of its own, like '\"text\"'"))
    })
}

async fn list(filter: RunListFilter, limit: usize, target: &Target) -> Result<(), Fail> {
    let client = target.client()?;
    let page_size = i32::try_from(limit.clamp(1, 1_000)).unwrap_or(1_000);
    let filter = RunListFilter { page_size, ..filter };
    let (mut runs, mut token) = (Vec::new(), String::new());
    loop {
        let RunPage { runs: page, next_page_token } = client.list(&filter, &token).await?;
        runs.extend(page);
        token = next_page_token;
        if token.is_empty() || runs.len() >= limit {
            break;
        }
    }
    runs.truncate(limit);
    match target.output {
        Format::Json => out::json(&Value::Array(runs.iter().map(json::run).collect())),
        Format::Jsonl => runs.iter().try_for_each(|r| out::line(&json::run(r).to_string())),
        Format::Text => {
            out::line(&format!(
                "{:<36}  {:<10}  {:<20}  {:<24}  STARTED",
                "RUN", "STATUS", "WORKFLOW", "WORKFLOW ID"
            ))?;
            runs.iter().try_for_each(|r| {
                let value = json::run(r);
                let started = value["started_at"].as_str().unwrap_or_default().to_owned();
                let started = started.get(..19).unwrap_or_default().replace('T', " ");
                let (kind, id) = (&r.run.workflow_type, &r.run.workflow_id);
                out::line(&format!(
                    "{:<36}  {:<10}  {kind:<20}  {id:<24}  {started}",
                    r.run.run_id,
                    r.status.as_str()
                ))
            })
        }
    }
}

async fn show(target: &Target, run: &str) -> Result<(), Fail> {
    let description = target.handle(run)?.describe().await?;
    let children = children::count(target.client()?, &description).await?;
    let mut value = json::run(&description);
    value["children"] = children.json();
    value["more_children"] = children.more().into();
    match target.output {
        Format::Json => out::json(&value),
        Format::Jsonl => out::line(&value.to_string()),
        Format::Text => {
            let Value::Object(fields) = value else { return Ok(()) };
            for (name, value) in fields.iter().filter(|(_, v)| says_something(v)) {
                let text = match (name.as_str(), value) {
                    ("waits_for_build", Value::String(any)) if any == "*" => {
                        "any that has its workflow".to_owned()
                    }
                    (_, Value::String(text)) => text.clone(),
                    ("in_doubt_steps", _) => {
                        description.in_doubt.iter().map(in_doubt).collect::<Vec<_>>().join(", ")
                    }
                    ("children", _) => children.text(),
                    ("more_children", _) => continue,
                    (_, value) => value.to_string(),
                };
                out::line(&format!("{name:<17} {text}"))?;
            }
            Ok(())
        }
    }
}

/// An attempt in doubt, for people: what `everstep step resolve` has to be told.
fn in_doubt(step: &StepInDoubt) -> String {
    format!("step {} ({}), attempt {}: {}", step.step_id, step.name, step.attempt, step.policy.as_str())
}

/// Which events.
struct Events {
    after: u64,
    follow: bool,
    chain: bool,
}

async fn history(target: &Target, run: &str, events: Events) -> Result<(), Fail> {
    let Events { mut after, follow, chain } = events;
    let mut all = Vec::new();
    let mut handle = Some(target.handle(run)?);
    while let Some(run) = handle.take() {
        let mut stream = run.history(after, follow).await?;
        while let Some(event) = stream.next().await? {
            match target.output {
                Format::Text => out::line(&json::event_line(&event))?,
                Format::Jsonl => out::line(&json::event(&event).to_string())?,
                Format::Json => all.push(json::event(&event)),
            }
            if let Some(next) = event.body.successor().filter(|_| chain) {
                handle = Some(target.client()?.handle(next));
                after = 0;
            }
        }
    }
    if target.output == Format::Json { out::json(&Value::Array(all)) } else { Ok(()) }
}

/// Follows a run to its end, and says how that was.
async fn watch(target: &Target, run: &str) -> Result<(), Fail> {
    let run = target.run_id(run).await?.to_string();
    history(target, &run, Events { after: 0, follow: true, chain: false }).await?;
    let description = target.handle(&run)?.describe().await?;
    let next = match description.run.successor_run_id.as_str() {
        "" => String::new(),
        next => format!("; it goes on as run {next}"),
    };
    out::note(&format!("the run is {}{next}", description.status));
    Ok(())
}

async fn print_result(handle: &RunHandle<Value>, output: Format) -> Result<(), Fail> {
    print_value(&handle.result().await?, output)
}

pub(super) fn print_value(value: &Value, output: Format) -> Result<(), Fail> {
    match (output, value) {
        (Format::Text, Value::String(text)) => out::line(text),
        (Format::Jsonl, value) => out::line(&value.to_string()),
        (_, value) => out::json(value),
    }
}
