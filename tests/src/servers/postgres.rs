//! A private Postgres server: its own data folder, a random port on 127.0.0.1, one database per test.

#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, anyhow, bail, ensure};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use tempfile::TempDir;

use super::guard::Guard;
use super::process::{Process, READY_WAIT, signal};
use super::{HOW_TO_INSTALL, locate, ports, repository, server_folder};

const USER: &str = "everstep";
/// It accepts "connections", or on a standby "read-only connections".
const READY_LINE: &str = "database system is ready to accept";
const PORT_TAKEN_LINE: &str = "Address already in use";
const PORT_ATTEMPTS_MAX: u32 = 10;
/// Postgres refuses to run as root; the first of these users that exists runs it then.
const UNPRIVILEGED_USERS: [&str; 2] = ["postgres", "nobody"];

/// How a private Postgres is set up.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Whether commits reach the disk. Off by default: what a killed process wrote survives in the
    /// page cache, so crash tests stay valid. Measurements of durable commits need it on.
    pub fsync: bool,
    /// The `max_connections` of the server.
    pub connections_max: u32,
    /// Further settings, as `postgres -c name=value` takes them.
    pub settings: Vec<(String, String)>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { fsync: false, connections_max: 300, settings: Vec::new() }
    }
}

/// A running Postgres that belongs to this test process; dropped, it is gone with all its data.
///
/// The calls that start and end it block the calling thread until the server has done so.
#[derive(Debug)]
pub struct PostgresServer {
    process: Process,
    guard: Guard,
    setup: Setup,
    port: u16,
    databases: AtomicU64,
}

/// What stays the same when the server is started again.
#[derive(Debug)]
struct Setup {
    folder: TempDir,
    bin: PathBuf,
    user: Option<User>,
    options: PostgresOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

impl PostgresServer {
    /// Starts a server with default options.
    ///
    /// # Errors
    /// When no Postgres 15 or later is installed, or when it does not start; the error says what it logged.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(PostgresOptions::default())
    }

    /// Starts a server with these options.
    ///
    /// # Errors
    /// As [`PostgresServer::start`].
    pub fn start_with(options: PostgresOptions) -> anyhow::Result<Self> {
        Self::start_from(options, Setup::init)
    }

    /// Starts a standby of this server: a copy of its data that follows it. This one must be running.
    ///
    /// # Errors
    /// As [`PostgresServer::start`], and when there is no `pg_basebackup`.
    pub fn start_standby(&self) -> anyhow::Result<Self> {
        Self::start_from(self.setup.options.clone(), |setup| setup.copy_from(self.port))
    }

    fn start_from(
        options: PostgresOptions,
        fill: impl FnOnce(&Setup) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let bin = locate::find_postgres(&repository())?
            .with_context(|| format!("found no Postgres 15 or later; {HOW_TO_INSTALL}"))?;
        let folder = server_folder("pg")?;
        let mut guard = Guard::start(folder.path())?;
        let user = unprivileged_user(folder.path(), Path::new("/etc/passwd"))?;
        if let Some(user) = user {
            chown(folder.path(), Some(user.uid), Some(user.gid))
                .context("cannot give away the data folder")?;
        }
        let bin = runnable_bin(bin, user, folder.path())?;
        let setup = Setup { folder, bin, user, options };
        fill(&setup)?;
        let (process, port) = setup.launch_on_free_port()?;
        guard.watch(process.pid())?;
        Ok(Self { process, guard, setup, port, databases: AtomicU64::new(0) })
    }

    /// The one server that the tests of this process share, started by the first caller.
    ///
    /// # Errors
    /// As [`PostgresServer::start`], for every caller alike.
    pub fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceLock<Result<PostgresServer, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Self::start().map_err(|error| format!("{error:#}")));
        shared.as_ref().map_err(|error| anyhow!("the shared Postgres did not start: {error}"))
    }

    /// The address of a database of this server; `postgres` always exists.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// The TCP port on 127.0.0.1; it stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A program of the same installation, such as `pg_dump`, to be run as the server's user in its folder.
    pub fn command(&self, program: &str) -> Command {
        self.setup.command(program)
    }

    /// The folder that holds its data and its socket.
    pub fn folder(&self) -> &Path {
        self.setup.folder.path()
    }

    /// The last lines that the server logged.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Makes an empty database that no other test uses, and returns its address.
    ///
    /// # Errors
    /// When the server is not running or out of connections.
    pub async fn create_database(&self) -> anyhow::Result<String> {
        let name = format!("es_test_{}", self.databases.fetch_add(1, Ordering::Relaxed) + 1);
        let mut connection = self.connect().await?;
        // template0 takes no connections, so that it can be copied by several tests at a time.
        let statement = AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0"));
        sqlx::query(statement).execute(&mut connection).await.context("cannot create a test database")?;
        connection.close().await?;
        Ok(self.url(&name))
    }

    /// The process ids of the client connections, other than the one that asks.
    ///
    /// # Errors
    /// When the server is not running or out of connections.
    pub async fn backend_pids(&self) -> anyhow::Result<Vec<u32>> {
        let mut connection = self.connect().await?;
        let rows = sqlx::query(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )
        .fetch_all(&mut connection)
        .await?;
        connection.close().await?;
        rows.iter().map(|row| Ok(u32::try_from(row.try_get::<i32, _>(0)?)?)).collect()
    }

    async fn connect(&self) -> anyhow::Result<PgConnection> {
        PgConnection::connect(&self.url("postgres")).await.context("cannot connect to the test Postgres")
    }

    /// SIGKILL to one connection's process. Postgres then drops all connections, recovers and serves
    /// again; this returns when it does.
    ///
    /// # Errors
    /// When `pid` is no process of this server, or when it does not recover.
    pub fn kill_backend(&self, pid: u32) -> anyhow::Result<()> {
        ensure!(self.process.children().contains(&pid), "pid {pid} is no process of this Postgres");
        let seen = self.process.ready_count();
        signal("KILL", &[pid])?;
        self.process.wait_ready(seen, READY_WAIT)
    }

    /// Ends the server at once and without a checkpoint (SIGQUIT), as `pg_ctl stop -m immediate` does.
    ///
    /// # Errors
    /// When processes of the server do not end.
    pub fn stop_immediate(&mut self) -> anyhow::Result<()> {
        self.process.end("QUIT")?;
        self.guard.forget()
    }

    /// SIGKILL to the server and to all its processes.
    ///
    /// # Errors
    /// When processes of the server do not end.
    pub fn kill_9(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.guard.forget()
    }

    /// Makes a primary of a standby; returns when it takes writes.
    ///
    /// # Errors
    /// When it was none, or does not come up.
    pub async fn promote(&self) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        let promoted: bool =
            sqlx::query_scalar("SELECT pg_promote(true, 60)").fetch_one(&mut connection).await?;
        ensure!(promoted, "the standby was not promoted; its last lines:\n{}", self.log_tail());
        Ok(connection.close().await?)
    }

    /// Starts an ended server again as a standby that follows nobody: it has what it had, and takes no writes.
    ///
    /// # Errors
    /// As [`PostgresServer::start_again`].
    pub fn start_again_stale(&mut self) -> anyhow::Result<()> {
        std::fs::write(self.setup.data().join("standby.signal"), "").context("cannot make it a standby")?;
        self.start_again()
    }

    /// Starts an ended server again, on the same data and the same port.
    ///
    /// # Errors
    /// When it still runs, and when it does not come up again.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.has_ended()?, "this Postgres is running; stop it before starting it again");
        self.process = self.setup.launch(self.port)?;
        self.guard.watch(self.process.pid())?;
        self.process.wait_ready(0, READY_WAIT)
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if let Err(error) = self.stop_immediate() {
            eprintln!("a test Postgres did not end cleanly: {error:#}");
        }
    }
}

impl Setup {
    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        // Log lines are matched in English; the folder of the caller may be closed to the other user.
        command.env("LC_ALL", "C").current_dir(self.folder.path());
        run_as(&mut command, self.user);
        command
    }

    fn init(&self) -> anyhow::Result<()> {
        let output = self
            .command("initdb")
            .args(["--username", USER, "--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync"])
            .arg("--pgdata")
            .arg(self.data())
            .output()
            .context("cannot run initdb")?;
        if !output.status.success() {
            bail!("initdb failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn copy_from(&self, port: u16) -> anyhow::Result<()> {
        let output = self
            .command("pg_basebackup")
            .args(["--host", "127.0.0.1", "--username", USER, "--checkpoint", "fast", "--no-sync"])
            .args(["--port", &port.to_string(), "--write-recovery-conf", "--pgdata"])
            .arg(self.data())
            .output()
            .context("cannot run pg_basebackup")?;
        ensure!(output.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn launch_on_free_port(&self) -> anyhow::Result<(Process, u16)> {
        for _ in 0..PORT_ATTEMPTS_MAX {
            let port = ports::free_port()?;
            let process = self.launch(port)?;
            match process.wait_ready(0, READY_WAIT) {
                Ok(()) => return Ok((process, port)),
                Err(_) if process.log_contains(PORT_TAKEN_LINE) => {}
                Err(error) => return Err(error.context("Postgres did not start")),
            }
        }
        bail!("Postgres found its port taken {PORT_ATTEMPTS_MAX} times in a row")
    }

    fn launch(&self, port: u16) -> anyhow::Result<Process> {
        let switch = |on: bool| if on { "on" } else { "off" };
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", port.to_string()),
            ("unix_socket_directories", self.folder.path().display().to_string()),
            ("max_connections", self.options.connections_max.to_string()),
            ("fsync", switch(self.options.fsync).to_owned()),
            ("full_page_writes", switch(self.options.fsync).to_owned()),
            // Files in the data folder, and not in /dev/shm, where a SIGKILL would leave them behind.
            ("dynamic_shared_memory_type", "mmap".to_owned()),
            ("lc_messages", "C".to_owned()),
            ("logging_collector", "off".to_owned()),
            ("log_destination", "stderr".to_owned()),
        ];
        settings.extend(self.options.settings.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data());
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        Process::spawn(&mut command, READY_LINE)
    }
}

fn run_as(command: &mut Command, user: Option<User>) {
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
}

/// The user to run Postgres as, when the folder that we made tells that we are root.
fn unprivileged_user(our_folder: &Path, passwd: &Path) -> anyhow::Result<Option<User>> {
    if our_folder.metadata()?.uid() != 0 {
        return Ok(None);
    }
    let accounts = std::fs::read_to_string(passwd).context("cannot read the list of users")?;
    let user = UNPRIVILEGED_USERS.iter().find_map(|name| find_user(&accounts, name));
    let names = UNPRIVILEGED_USERS.join(" and ");
    user.map(Some)
        .with_context(|| format!("Postgres does not run as root, and the users {names} do not exist"))
}

/// `name:password:uid:gid:...`, one account a line.
fn find_user(accounts: &str, name: &str) -> Option<User> {
    let mut fields = accounts.lines().map(|line| line.split(':')).find_map(|mut fields| {
        let matches = fields.next() == Some(name);
        matches.then_some(fields)
    })?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    (uid != 0).then_some(User { uid, gid })
}

/// The binaries, or a copy of them where the unprivileged user cannot reach them (a checkout below
/// root's home).
fn runnable_bin(bin: PathBuf, user: Option<User>, folder: &Path) -> anyhow::Result<PathBuf> {
    let mut probe = Command::new(bin.join("postgres"));
    probe.arg("--version").current_dir(folder);
    run_as(&mut probe, user);
    match probe.output() {
        Err(error) if error.kind() == ErrorKind::PermissionDenied && user.is_some() => {
            copy_install(&bin, folder)
        }
        Err(error) => Err(error).with_context(|| format!("cannot run {}", bin.join("postgres").display())),
        Ok(_) => Ok(bin),
    }
}

/// Copies the whole install. A wheel keeps shared libraries in `<package>.libs` beside its package, and
/// the binaries look for them there.
fn copy_install(bin: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let install = bin.parent().context("the folder of the Postgres binaries has no parent")?;
    let package = install.parent().map(|package| (package, package.with_extension("libs")));
    let sources = match &package {
        Some((package, libraries)) if libraries.is_dir() => vec![*package, libraries.as_path()],
        _ => vec![install],
    };
    let copy = folder.join("install");
    std::fs::create_dir(&copy).context("cannot make the folder for a copy of Postgres")?;
    let status = Command::new("cp").arg("-R").args(&sources).arg(&copy).status().context("cannot run cp")?;
    ensure!(status.success(), "cannot copy Postgres from {} to {}", install.display(), copy.display());
    let above = sources[0].parent().context("the folder of the Postgres install has no parent")?;
    Ok(copy.join(bin.strip_prefix(above)?))
}
