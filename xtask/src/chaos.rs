//! `cargo xtask chaos`: builds the chaos binary and runs one case with it, or judges one again.

use std::path::Path;
use std::process::Command;

use crate::{locate, servers, shell};

/// Runs `everstep-chaos run` with these arguments, which it checks itself. Ends this process with its exit code
/// when that is not 0, for it says whether the case failed or proved nothing.
pub(crate) fn run(root: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let mut build = shell::cargo(root);
    shell::run(build.args(["build", "--locked", "-p", "everstep-chaos", "--bins"]))?;
    let mut chaos = Command::new(crate::target_folder(root).join("debug/everstep-chaos"));
    chaos.current_dir(root);
    if !arguments.iter().any(|argument| argument == "sqlite" || argument == "--help") {
        chaos.env(locate::PG_VARIABLE, servers::postgres(root, true)?);
        chaos.env(locate::NATS_VARIABLE, servers::nats(root, true)?);
    }
    let status = chaos.arg("run").args(arguments).status()?;
    if let Some(code) = status.code().filter(|code| *code != 0) {
        std::process::exit(code);
    }
    anyhow::ensure!(status.success(), "everstep-chaos ended with {status}");
    Ok(())
}
