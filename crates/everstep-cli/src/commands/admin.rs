//! `everstep admin …`: a database, looked at and copied without trusting a server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use everstep_core::{Event, Run, RunId};
use everstep_store::{PageToken, RunFilter, RunTables, Store};
use serde_json::json;

use crate::fail::Fail;
use crate::node::Database;
use crate::{json, out};

const PAGE: usize = 500;

#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// The database: postgres://USER@HOST/NAME or sqlite:FILE
    #[arg(long, env = "EVERSTEP_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Database,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print runs, events, timers, tasks, queued steps, doubts and wakes, one JSON document a line
    Export {
        #[command(flatten)]
        source: Source,
        /// Only this namespace
        #[arg(long)]
        namespace: Option<String>,
    },
    /// Copy a SQLite database into a new file, also while a node writes to it, and check the copy
    Backup {
        #[command(flatten)]
        source: Source,
        /// The new file
        file: PathBuf,
    },
    /// Compare what the tables say with what follows from the events
    Rebuild {
        #[command(flatten)]
        source: Source,
        /// Only compare (rewriting is not built)
        #[arg(long, required = true)]
        check: bool,
    },
}

pub(crate) async fn run(command: Command) -> Result<(), Fail> {
    match command {
        Command::Export { source, namespace } => {
            let store = source.database_url.open_read_only().await?;
            for namespace in namespaces(&store, namespace).await? {
                let mut page = None;
                while let Some((runs, next)) = runs_of(&store, &namespace, page).await? {
                    for run in runs {
                        export(&store, run).await?;
                    }
                    page = Some(next);
                }
            }
            Ok(())
        }
        Command::Backup { source, file } => back_up(&source.database_url, &file).await,
        Command::Rebuild { source, check: _ } => check(&source.database_url.open_read_only().await?).await,
    }
}

async fn back_up(database: &Database, file: &Path) -> Result<(), Fail> {
    let Database::Sqlite(path) = database else {
        return Err(Fail::usage(
            "Postgres has its own: pg_dump -Fc -f FILE URL, or pg_basebackup for the whole server; see \"Back up and \
             restore\" in docs/operations.md",
        ));
    };
    if file.exists() {
        return Err(Fail::refused(format!("{} exists; a backup is a new file", file.display())));
    }
    let bytes = everstep_store_sqlite::back_up(path, file).await?;
    out::note(&format!("{} is a copy of {}, {bytes} bytes, checked", file.display(), path.display()));
    Ok(())
}

async fn namespaces(store: &Arc<dyn Store>, only: Option<String>) -> Result<Vec<String>, Fail> {
    if let Some(name) = only {
        return match store.get_namespace(&name).await? {
            Some(found) => Ok(vec![found.name]),
            None => Err(Fail::refused(format!("no namespace '{name}'"))),
        };
    }
    let mut names: Vec<String> = Vec::new();
    loop {
        let after = names.last().cloned().unwrap_or_default();
        let page = store.list_namespaces(&after, PAGE).await?;
        if page.is_empty() {
            return Ok(names);
        }
        names.extend(page.into_iter().map(|n| n.name));
    }
}

async fn runs_of(
    store: &Arc<dyn Store>,
    namespace: &str,
    page: Option<PageToken>,
) -> Result<Option<(Vec<RunId>, PageToken)>, Fail> {
    let filter = RunFilter { namespace: namespace.to_owned(), ..RunFilter::default() };
    let rows = store.list_runs(&filter, page, PAGE).await?;
    let runs: Vec<RunId> = rows.iter().map(|r| r.run_id).collect();
    Ok(runs.last().copied().map(|last| (runs, PageToken(last))))
}

async fn history(store: &Arc<dyn Store>, run: RunId) -> Result<Vec<Event>, Fail> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let page = store.read_events(run, events.last().map_or(0, |e| e.seq), PAGE).await?;
        if page.is_empty() {
            return Ok(events);
        }
        events.extend(page);
    }
}

async fn export(store: &Arc<dyn Store>, run: RunId) -> Result<(), Fail> {
    let Some(tables) = store.run_tables(run).await? else { return Ok(()) };
    let id = run.to_string();
    let p = tables.projection;
    out::line(&json!({"table": "runs", "row": json::row(&p.row)}).to_string())?;
    for event in history(store, run).await? {
        out::line(&json!({"table": "events", "run_id": id, "row": json::event(&event)}).to_string())?;
    }
    for doubt in p.doubts {
        let row = json::doubt(&doubt);
        out::line(&json!({"table": "doubts", "run_id": id, "row": row}).to_string())?;
    }
    for step in p.steps {
        out::line(&json!({"table": "step_tasks", "run_id": id, "row": step}).to_string())?;
    }
    for timer in p.timers {
        let row = json!({"kind": timer.key.kind.as_str(), "id": timer.key.id, "fire_at": json::time(timer.fire_at)});
        out::line(&json!({"table": "timers", "run_id": id, "row": row}).to_string())?;
    }
    if let Some(task) = p.task {
        let row = json!({
            "namespace": task.queue.namespace, "task_queue": task.queue.task_queue,
            "workflow_type": task.workflow_type, "build_id": task.build_id,
        });
        out::line(&json!({"table": "tasks", "run_id": id, "row": row}).to_string())?;
    }
    for seq in tables.wakes {
        out::line(&json!({"table": "wakes", "run_id": id, "row": {"seq": seq}}).to_string())?;
    }
    Ok(())
}

/// Tasks of releases that did not say which code they need are right all the same.
fn with_types(mut tables: RunTables) -> RunTables {
    let row = &tables.projection.row;
    if let Some(task) = tables.projection.task.as_mut().filter(|task| task.workflow_type.is_empty()) {
        task.workflow_type.clone_from(&row.workflow_type);
    }
    tables
}

async fn check(store: &Arc<dyn Store>) -> Result<(), Fail> {
    let (mut runs, mut events, mut different) = (0u64, 0u64, 0u64);
    for namespace in namespaces(store, None).await? {
        let mut page = None;
        while let Some((ids, next)) = runs_of(store, &namespace, page).await? {
            for run in ids {
                let history = history(store, run).await?;
                let Some(tables) = store.run_tables(run).await? else { continue };
                runs += 1;
                events += history.len() as u64;
                let tables = with_types(tables);
                let problem = match Run::fold(run, &history) {
                    Err(error) => Some(format!("the history does not fold: {error}")),
                    Ok(None) => Some("a row without events".to_owned()),
                    Ok(Some(folded)) if folded.projection() != tables.projection => Some(format!(
                        "the tables differ: fold {:?}, tables {:?}",
                        folded.projection(),
                        tables.projection
                    )),
                    Ok(Some(_)) => None,
                };
                if let Some(problem) = problem {
                    different += 1;
                    out::line(&format!("{run}: {problem}"))?;
                }
            }
            page = Some(next);
        }
    }
    out::note(&format!("{runs} runs, {events} events, {different} different"));
    if different > 0 {
        Err(Fail::refused(format!("{different} runs differ from their events")))
    } else {
        Ok(())
    }
}
