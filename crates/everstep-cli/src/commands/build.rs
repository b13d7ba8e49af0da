//! `everstep build …`: which builds are there, which are waited for, and which may go on with the runs of others.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::run::Target;
use crate::fail::Fail;
use crate::out::{self, Format};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the builds that workers are connected with, and runs that nobody has the code for
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Let a build go on with the runs of a queue that belong to another build; everstep worker check tells whether it can
    Allow {
        /// The build that may
        build: String,
        /// The build whose runs they are
        #[arg(long, value_name = "BUILD")]
        continues: String,
        /// The runs' queue
        #[arg(long, default_value = "default")]
        queue: String,
        #[command(flatten)]
        target: Target,
    },
}

impl Command {
    fn target(&self) -> &Target {
        match self {
            Self::List { target } | Self::Allow { target, .. } => target,
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
        Command::Allow { build, continues, queue, target } => {
            Ok(target.client()?.allow_build(&queue, &build, &continues).await?)
        }
        Command::List { target } => {
            let listed = target.client()?.list_builds().await?;
            let builds: Vec<Value> = listed.builds.iter().map(|build| json!({
                "build_id": build.build_id, "task_queues": build.task_queues, "workflow_types": build.workflow_types,
                "workers": build.workers, "continues": build.continues,
            })).collect();
            let waiting: Vec<Value> = listed.waiting.iter().map(|waiting| json!({
                "runs": waiting.runs, "task_queue": waiting.task_queue, "workflow_type": waiting.workflow_type,
                "build_id": waiting.build_id, "oldest_seconds": oldest(waiting.oldest.as_ref()).as_secs(),
            })).collect();
            match target.output() {
                Format::Json => out::json(&json!({"builds": builds, "waiting": waiting})),
                Format::Jsonl => out::line(&json!({"builds": builds, "waiting": waiting}).to_string()),
                Format::Text => print(&listed),
            }
        }
    }
}

type Listed = everstep::client::Builds;

fn oldest(duration: Option<&prost_types::Duration>) -> Duration {
    let seconds = duration.map_or(0, |d| u64::try_from(d.seconds).unwrap_or(0));
    Duration::from_secs(seconds)
}

fn print(listed: &Listed) -> Result<(), Fail> {
    out::line(&format!("{:<24}  {:<7}  {:<24}  TYPES", "BUILD", "WORKERS", "QUEUES"))?;
    for build in &listed.builds {
        let queues = match build.task_queues.is_empty() {
            true => "(only checks)".to_owned(),
            false => build.task_queues.join(", "),
        };
        let types = match (build.workflow_types.is_empty(), build.task_queues.is_empty()) {
            (true, true) => "-".to_owned(),
            (true, false) => "any".to_owned(),
            (false, _) => build.workflow_types.join(", "),
        };
        out::line(&format!("{:<24}  {:<7}  {queues:<24}  {types}", build.build_id, build.workers))?;
        if !build.continues.is_empty() {
            out::line(&format!("{:<24}  continues {}", "", build.continues.join(", ")))?;
        }
    }
    for waiting in &listed.waiting {
        let runs = if waiting.runs == 1 { "1 run".to_owned() } else { format!("{} runs", waiting.runs) };
        let verb = if waiting.runs == 1 { "waits" } else { "wait" };
        let what = match waiting.build_id.is_empty() {
            true => "a worker that has it".to_owned(),
            false => format!("build {}", waiting.build_id),
        };
        let oldest = span(oldest(waiting.oldest.as_ref()));
        out::line(&format!(
            "{runs} of '{}' {verb} for {what} (queue {}, oldest {oldest})",
            waiting.workflow_type, waiting.task_queue
        ))?;
    }
    Ok(())
}

/// For people: the largest unit that fits.
fn span(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..=119 => format!("{s}s"),
        s @ 120..=7_199 => format!("{}m", s / 60),
        s @ 7_200..=172_799 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}
