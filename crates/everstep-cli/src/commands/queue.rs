//! `everstep queue …`: what waits in task queues, and how fast they may be worked off.

use clap::Subcommand;
use everstep::client::{QueueDescription, QueueLimits, QueueWorker};
use serde_json::Value;

use super::run::Target;
use crate::fail::Fail;
use crate::json;
use crate::out::{self, Format};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List queues in which something waits or runs, or that have a limit, by name
    List {
        /// How many at most
        #[arg(long, default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        target: Target,
    },
    /// Show one queue, with the workers that serve it and what waits with nobody to run it
    Show {
        /// The task queue
        queue: String,
        #[command(flatten)]
        target: Target,
    },
    /// Set how many queued steps of a queue run at one time, and how many begin in a second. Whatever is not given is
    /// not limited
    #[command(group = clap::ArgGroup::new("limits").required(true).multiple(true))]
    Limit {
        /// The task queue
        queue: String,
        /// Steps that run at one time, on all workers together
        #[arg(long, group = "limits", value_parser = clap::value_parser!(u32).range(1..))]
        running: Option<u32>,
        /// Steps that begin in a second, on all workers together
        #[arg(long, group = "limits", value_parser = parse_rate, allow_negative_numbers = true)]
        per_second: Option<f64>,
        /// Steps that may begin at once after a quiet time
        #[arg(long, default_value_t = 1, requires = "per_second")]
        burst: u32,
        /// Lift all limits
        #[arg(long, group = "limits", conflicts_with_all = ["running", "per_second"])]
        none: bool,
        #[command(flatten)]
        target: Target,
    },
}

impl Command {
    fn target(&self) -> &Target {
        match self {
            Self::List { target, .. } | Self::Show { target, .. } | Self::Limit { target, .. } => target,
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
        Command::List { limit, target } => list(limit, &target).await,
        Command::Show { queue, target } => {
            let queue = target.client()?.queue(&queue).await?;
            match target.output() {
                Format::Jsonl => out::line(&json::queue_and_workers(&queue).to_string()),
                Format::Json => out::json(&json::queue_and_workers(&queue)),
                Format::Text => table(std::slice::from_ref(&queue)).and_then(|()| people(&queue)),
            }
        }
        Command::Limit { queue, running, per_second, burst, none: _, target } => {
            let limits = QueueLimits {
                max_running: running.unwrap_or_default(),
                max_per_second: per_second.unwrap_or_default(),
                burst,
            };
            target.client()?.set_queue_limits(&queue, limits).await?;
            Ok(())
        }
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("must be a number greater than 0; --none lifts all limits".to_owned()),
    }
}

/// Who serves a queue, and what it lacks a worker for.
fn people(queue: &QueueDescription) -> Result<(), Fail> {
    if queue.workers.is_empty() {
        out::line("\nNo worker serves it.")?;
    } else {
        out::line(&format!("\n{:<32}  {:<16}  {:>9}  STEP SLOTS", "WORKER", "BUILD", "RUN SLOTS"))?;
    }
    for worker in &queue.workers {
        let QueueWorker { identity, build_id, run_slots, step_slots, .. } = worker;
        out::line(&format!("{identity:<32}  {build_id:<16}  {run_slots:>9}  {step_slots:>10}"))?;
    }
    if queue.types_without_worker.is_empty() {
        return Ok(());
    }
    out::line(&format!("\n{:<32}  {:<8}  WAITING", "WITHOUT WORKER", "KIND"))?;
    queue.types_without_worker.iter().try_for_each(|waits| {
        let kind = if waits.is_step { "step" } else { "workflow" };
        out::line(&format!("{:<32}  {kind:<8}  {:>7}", waits.name, waits.waiting))
    })
}

async fn list(limit: usize, target: &Target) -> Result<(), Fail> {
    let client = target.client()?;
    let page_size = i32::try_from(limit.clamp(1, 1_000)).unwrap_or(1_000);
    let (mut queues, mut token) = (Vec::new(), String::new());
    loop {
        let page = client.queues(page_size, &token).await?;
        queues.extend(page.queues);
        token = page.next_page_token;
        if token.is_empty() || queues.len() >= limit {
            break;
        }
    }
    queues.truncate(limit);
    match target.output() {
        Format::Json => out::json(&Value::Array(queues.iter().map(json::queue).collect())),
        Format::Jsonl => queues.iter().try_for_each(|q| out::line(&json::queue(q).to_string())),
        Format::Text => table(&queues),
    }
}

fn table(queues: &[QueueDescription]) -> Result<(), Fail> {
    out::line(&format!(
        "{:<24}  {:>8}  {:>8}  {:>8}  {:>8}  {:>11}  {:>10}  {:>5}  OLDEST",
        "QUEUE", "RUNS", "WAITING", "RUNNING", "LATER", "MAX RUNNING", "PER SECOND", "BURST"
    ))?;
    queues.iter().try_for_each(|q| {
        let QueueLimits { max_running, max_per_second, burst } = q.limits;
        let shown = |limit: f64| if limit > 0.0 { limit.to_string() } else { "-".to_owned() };
        let burst = if max_per_second > 0.0 { burst.to_string() } else { "-".to_owned() };
        let oldest = q.oldest_waiting.map(json::time).unwrap_or_default();
        let oldest = oldest.get(..19).unwrap_or_default().replace('T', " ");
        let line = format!(
            "{:<24}  {:>8}  {:>8}  {:>8}  {:>8}  {:>11}  {:>10}  {burst:>5}  {oldest}",
            q.task_queue,
            q.runs_waiting,
            q.steps_waiting,
            q.steps_running,
            q.steps_later,
            shown(f64::from(max_running)),
            shown(max_per_second),
        );
        out::line(line.trim_end())
    })
}
