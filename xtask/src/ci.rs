//! `cargo xtask ci`: all that a change must pass, cheapest first. The hosted check runs the same.

use std::path::Path;
use std::process::Command;

use crate::{gate, servers, shell, test, tidy};

const WASM: &str = "wasm32-unknown-unknown";

pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    shell::run(shell::cargo(root).args(["fmt", "--all", "--check"]))?;
    tidy::run(root)?;
    lint_proto(root)?;
    shell::run(shell::cargo(root).args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    check_dependencies(root)?;
    check_core_on_wasm(root)?;
    gate::run_if_installed(root)?;
    test::run(root, &test::Options { all: true, ..test::Options::default() })?;
    let mut doc = shell::cargo(root);
    doc.env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--locked", "--no-deps", "-p", "everstep"]);
    shell::run(&mut doc)?;
    eprintln!("ci: everything passed");
    Ok(())
}

fn lint_proto(root: &Path) -> anyhow::Result<()> {
    match servers::buf(root) {
        Ok(buf) => shell::run(Command::new(buf).arg("lint").current_dir(root)),
        Err(error) => {
            eprintln!("buf is not installed ({error:#}): the lint of proto/ was skipped");
            Ok(())
        }
    }
}

fn check_dependencies(root: &Path) -> anyhow::Result<()> {
    if !shell::succeeds(shell::cargo(root).args(["deny", "--version"])) {
        eprintln!(
            "cargo-deny is not installed: skipped; tidy has checked the bans and licenses of deny.toml"
        );
        return Ok(());
    }
    shell::run(shell::cargo(root).args(["deny", "--locked", "check"]))
}

fn check_core_on_wasm(root: &Path) -> anyhow::Result<()> {
    let mut probe = Command::new("rustc");
    probe.args(["--print", "target-libdir", "--target", WASM]).current_dir(root);
    let installed = shell::output(&mut probe).is_ok_and(|folder| Path::new(folder.trim()).is_dir());
    if !installed {
        eprintln!(
            "the target {WASM} is not installed: everstep-core is held pure by its clippy.toml and by tidy"
        );
        return Ok(());
    }
    shell::run(shell::cargo(root).args(["check", "--locked", "-p", "everstep-core", "--target", WASM]))
}
