//! F15: a pooler is between, which gives one connection to many. A node does not start behind it and says what to do;
//! one that is led to it while it works does not take it for Postgres.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use everstep_chaos::case::{Case, Options};
use everstep_chaos::pace;
use everstep_chaos::topology::{StoreKind, held};
use everstep_tests::servers::{PostgresServer, free_port, require};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::support::{LONG, drop_case, has_servers, layout, not_ready, passes, readiness, skipped};

/// What a refusal has to say.
const SAYS: [&str; 2] = ["pgbouncer is between", "give the address of Postgres itself"];

/// What this binary's command says that does not want this database.
async fn refusal(arguments: &[&str], port: u16) -> anyhow::Result<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everstep-chaos"));
    let url = format!("postgres://everstep@127.0.0.1:{port}/everstep");
    command.args(arguments).args(["--database-url", &url]).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(10), command.output());
    let output = output.await.context("it takes more than 10 s")??;
    ensure!(!output.status.success(), "{arguments:?} works");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

async fn is_refused(port: u16) -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", free_port()?);
    for arguments in [vec!["server", "--allow-fsync-off", "--listen", &listen], vec!["migrate"]] {
        let said = refusal(&arguments, port).await?;
        ensure!(SAYS.iter().all(|part| said.contains(part)), "{arguments:?} says: {said}");
    }
    Ok(())
}

async fn migrated() -> anyhow::Result<PostgresServer> {
    let server = tokio::task::spawn_blocking(PostgresServer::start).await??;
    use sqlx::Connection as _;
    let mut connection = sqlx::PgConnection::connect(&server.url("postgres")).await?;
    sqlx::query("CREATE DATABASE everstep").execute(&mut connection).await?;
    connection.close().await?;
    everstep_store_postgres::migrate(&server.url("everstep")).await?;
    Ok(server)
}

/// A pgbouncer in transaction mode, ended with this value.
struct Bouncer {
    _child: Child,
    port: u16,
}

fn pgbouncer() -> Option<PathBuf> {
    ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].iter().map(PathBuf::from).find(|path| path.exists())
}

impl Bouncer {
    /// `lenient`: what it does not know of a connection's settings is dropped, as its manual advises.
    async fn start(binary: &Path, folder: &Path, postgres: u16, lenient: bool) -> anyhow::Result<Self> {
        let port = free_port()?;
        let ignored = if lenient { "extra_float_digits,options" } else { "extra_float_digits" };
        let file = folder.join(format!("pgbouncer-{port}.ini"));
        let text = format!(
            "[databases]\neverstep = host=127.0.0.1 port={postgres} user=everstep\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\nignore_startup_parameters = {ignored}\n"
        );
        std::fs::write(&file, text)?;
        let mut command = Command::new(binary);
        if rustix::process::getuid().is_root() {
            // It does not run as root.
            command.args(["--user", "nobody"]);
        }
        command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let bouncer = Self { _child: command.kill_on_drop(true).spawn()?, port };
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let listens = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tick.tick().await;
            }
        };
        tokio::time::timeout(LONG, listens).await.context("pgbouncer does not listen")?;
        Ok(bouncer)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_start_behind_pgbouncer() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let Some(binary) = pgbouncer() else { return skipped("pgbouncer is not installed") };
    let (postgres, folder) = (migrated().await?, tempfile::tempdir()?);
    for lenient in [false, true] {
        let bouncer = Bouncer::start(&binary, folder.path(), postgres.port(), lenient).await?;
        is_refused(bouncer.port).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_start_behind_what_drops_its_settings() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let postgres = migrated().await?;
    for lenient in [false, true] {
        let port = fake(postgres.port(), lenient).await?;
        is_refused(port).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_led_to_a_pooler_waits_for_postgres() -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    let layout = layout("f15", 115, StoreKind::Postgres);
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    let backend = case.topology().backend.clone().context("Postgres")?;
    let postgres = held(&backend.postgres).port();
    let node = case.topology().nodes.first().context("a node")?;
    let rules = node.to_postgres.as_ref().context("a link to Postgres")?.rules();
    for (port, name) in
        [(fake(postgres, true).await?, "lenient_pooler"), (fake(postgres, false).await?, "pooler")]
    {
        rules.point_at(format!("127.0.0.1:{port}"));
        rules.reset();
        not_ready(node.port, LONG).await?;
        case.wait_moved(20, LONG).await?;
        rules.point_at(format!("127.0.0.1:{postgres}"));
        rules.reset();
        readiness(node.port, LONG, true).await?;
        case.count(name, true);
        case.wait_moved(20, LONG).await?;
    }
    let log = std::fs::read_to_string(node.process.program.log())?;
    pace::wait_for("the log says why", LONG, || Ok(SAYS.iter().all(|part| log.contains(part)))).await?;
    passes(case).await?;
    drop_case(&folder)
}

/// What a pooler does to the settings of a connection, and nothing else: a lenient one drops them, another refuses
/// the connection.
async fn fake(postgres: u16, lenient: bool) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(relay(client, postgres, lenient));
        }
    });
    Ok(port)
}

async fn relay(mut client: TcpStream, postgres: u16, lenient: bool) -> anyhow::Result<()> {
    let mut startup = packet(&mut client).await?;
    // Eight bytes ask for TLS, which there is none of.
    while startup.len() == 4 {
        client.write_all(b"N").await?;
        startup = packet(&mut client).await?;
    }
    if !lenient {
        let text = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
        client.write_all(b"E").await?;
        client.write_all(&u32::try_from(text.len() + 4)?.to_be_bytes()).await?;
        return Ok(client.write_all(text).await?);
    }
    let mut kept = startup.get(..4).context("a version")?.to_vec();
    let mut words = startup[4..].split(|byte| *byte == 0);
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        if name != b"options" && !name.is_empty() {
            kept.extend([name, b"\0", value, b"\0"].concat());
        }
    }
    kept.push(0);
    let mut server = TcpStream::connect(("127.0.0.1", postgres)).await?;
    server.write_all(&u32::try_from(kept.len() + 4)?.to_be_bytes()).await?;
    server.write_all(&kept).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// What follows the length.
async fn packet(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let length = usize::try_from(stream.read_u32().await?)?;
    ensure!((8..10_000).contains(&length), "no beginning of a connection");
    let mut bytes = vec![0; length - 4];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
