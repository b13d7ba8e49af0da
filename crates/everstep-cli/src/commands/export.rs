//! `everstep run export`: runs as `.history` files.

use std::path::{Path, PathBuf};

use everstep::RunStatus;
use everstep::client::{RunListFilter, RunPage};

use super::run::Target;
use crate::fail::Fail;
use crate::out;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["run", "open"]))]
pub(crate) struct Args {
    /// Run id or workflow id
    #[arg(requires = "out")]
    run: Option<String>,
    /// Write the run to this file
    #[arg(long, value_name = "FILE", conflicts_with = "open")]
    out: Option<PathBuf>,
    /// Every open run of the namespace, one file each
    #[arg(long, requires = "dir")]
    open: bool,
    /// Folder of the files; made if it is not there
    #[arg(long, conflicts_with = "run")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    pub(super) target: Target,
}

pub(super) async fn run(args: Args) -> Result<(), Fail> {
    let Args { run, out, dir, target, .. } = args;
    match (run, out, dir) {
        (Some(run), Some(file), _) => write(&file, &target.handle(&run)?.export().await?),
        (None, _, Some(folder)) => open_runs(&folder, &target).await,
        _ => Err(Fail::usage("say which run and --out, or --open and --dir")),
    }
}

async fn open_runs(folder: &Path, target: &Target) -> Result<(), Fail> {
    std::fs::create_dir_all(folder).map_err(|e| Fail::refused(format!("{}: {e}", folder.display())))?;
    let client = target.client()?;
    let statuses = RunStatus::ALL.into_iter().filter(|status| !status.is_closed()).collect();
    let filter = RunListFilter { statuses, page_size: 1_000, ..RunListFilter::default() };
    let (mut files, mut token) = (0_usize, String::new());
    loop {
        let RunPage { runs, next_page_token } = client.list(&filter, &token).await?;
        for run in runs {
            let handle = client.handle::<serde_json::Value>(run.run_id);
            write(&folder.join(format!("{}.history", run.run_id)), &handle.export().await?)?;
            files += 1;
        }
        if next_page_token.is_empty() {
            out::note(&format!("{files} files written to {}", folder.display()));
            return Ok(());
        }
        token = next_page_token;
    }
}

/// All of the file or none: half a history would pass for a short one.
fn write(file: &Path, data: &[u8]) -> Result<(), Fail> {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let bad = |e: std::io::Error| Fail::refused(format!("{}: {e}", file.display()));
    std::fs::write(&part, data).and_then(|()| std::fs::rename(&part, file)).map_err(bad)
}
