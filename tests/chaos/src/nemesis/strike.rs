//! How each fault is carried out, and healed.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use everstep_checker::format::JournalEntry;
use everstep_faultproxy::{Direction, Fault, GrpcPoint, Handle, NatsFault, Rule, When};
use rustix::process::{Pid, Signal, kill_process};

use super::{Card, Strike};
use crate::clock::mono_ns;
use crate::journal::{ended_since, under_way};
use crate::pace;
use crate::process::Supervised;
use crate::topology::{Backend, DRAIN_MAX, Node, Topology, WorkerProcess, blocking, held};

/// Part of the text of every statement that appends.
const APPEND: &str = "INSERT INTO events";

/// How long a worker may take to come to a step's end.
const SAYS_WITHIN: Duration = Duration::from_secs(2);
/// How long the other servers may take to give a run away whose owner's lease has ended.
const LOST_WITHIN: Duration = Duration::from_secs(5);

/// Strikes, waits, and heals. False when the fault met nobody.
pub(super) async fn carry_out(topology: &Topology, strike: &Strike) -> anyhow::Result<bool> {
    match strike.card {
        Card::KillServer => kill(&node(topology, strike)?.process, strike).await,
        Card::StopServer => pause(&node(topology, strike)?.process, strike).await,
        Card::StopOwner => stop_owner(topology, strike).await,
        Card::TermServer => terminate(&node(topology, strike)?.process, strike).await,
        Card::KillWorker => kill(&worker(topology, strike)?.process, strike).await,
        Card::StopWorker => pause(&worker(topology, strike)?.process, strike).await,
        Card::TermWorker => terminate(&worker(topology, strike)?.process, strike).await,
        Card::KillPostgres | Card::KillBackend | Card::StopBackend => postgres(topology, strike).await,
        Card::KillNats | Card::WipeNats => nats(topology, strike).await,
        Card::Deafen => {
            let worker = &worker(topology, strike)?.process;
            worker.kill_9().await?;
            let done = nats(topology, strike).await;
            worker.want_up();
            done
        }
        Card::SetClock => topology.clock(strike.victim)?.jump(strike.luck, hold(strike)).await,
        Card::CutPostgres | Card::CutWorker | Card::CutClients => {
            let rules = rules_of(topology, strike)?;
            let met = rules.open_connections() > 0;
            rules.reset();
            // And for a while nobody gets in again.
            Ok(rule(&rules, Fault::Refuse.into(), strike).await? || met)
        }
        _ => rule(&rules_of(topology, strike)?, rule_of(strike), strike).await,
    }
}

fn hold(strike: &Strike) -> Duration {
    Duration::from_millis(strike.hold_ms)
}

fn node<'a>(topology: &'a Topology, strike: &Strike) -> anyhow::Result<&'a Node> {
    topology.nodes.get(strike.victim).context("there is no such node")
}

fn worker<'a>(topology: &'a Topology, strike: &Strike) -> anyhow::Result<&'a WorkerProcess> {
    topology.workers.get(strike.victim).context("there is no such worker")
}

fn backend(topology: &Topology) -> anyhow::Result<Backend> {
    topology.backend.clone().context("there is no Postgres here")
}

async fn kill(process: &Supervised, strike: &Strike) -> anyhow::Result<bool> {
    let alive = process.pid().is_some();
    process.kill_9().await?;
    pace::hold(hold(strike)).await;
    process.want_up();
    Ok(alive)
}

async fn pause(process: &Supervised, strike: &Strike) -> anyhow::Result<bool> {
    let alive = process.signal(Signal::STOP);
    pace::hold(hold(strike)).await;
    process.signal(Signal::CONT);
    Ok(alive)
}

/// The worker has the time to say something that its server does not hear before it has lost the worker's run. What
/// the server hears then is a stale owner's, for certain: it is refused, or the case is worth nothing.
async fn stop_owner(topology: &Topology, strike: &Strike) -> anyhow::Result<bool> {
    let worker = worker(topology, strike)?;
    let server = topology.nodes.get(worker.node).context("there is no such node")?;
    let (case, name) = (&topology.layout.case, &worker.process.program.name);
    // With a step under way, there is something to say.
    let busy = || Ok(!under_way(case, name)?.is_empty());
    let _ = pace::wait_for("a step under way", SAYS_WITHIN, busy).await;
    let mut alive = server.process.signal(Signal::STOP);
    let since = mono_ns();
    let mut said = Vec::new();
    let says = || {
        said = ended_since(case, name, since)?;
        Ok(!said.is_empty())
    };
    let _ = pace::wait_for("a step has ended", SAYS_WITHIN, says).await;
    // From the sink's answer to the server's socket.
    pace::hold(Duration::from_millis(120)).await;
    alive &= worker.process.signal(Signal::STOP);
    pace::hold(hold(strike)).await;
    if let Some(step) = said.first() {
        // Or the case goes on without it, and the heal ends what is wrong.
        let _ = tokio::time::timeout(LOST_WITHIN, lost(topology, step)).await;
    }
    server.process.signal(Signal::CONT);
    pace::hold(Duration::from_millis(500)).await;
    worker.process.signal(Signal::CONT);
    Ok(alive)
}

/// Ready when the run is not any more its that executed this step.
async fn lost(topology: &Topology, step: &JournalEntry) -> anyhow::Result<()> {
    use sqlx::Connection as _;
    let mut connection = sqlx::PgConnection::connect(&topology.source.url).await?;
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    loop {
        tick.tick().await;
        let query = "SELECT epoch > $2 OR owner IS NULL FROM runs WHERE run_id = $1::uuid";
        let asked = sqlx::query_scalar(query).bind(&step.run_id).bind(i32::try_from(step.epoch)?);
        let gone: Option<bool> = asked.fetch_optional(&mut connection).await?;
        if gone.unwrap_or(true) {
            return Ok(connection.close().await?);
        }
    }
}

async fn terminate(process: &Supervised, strike: &Strike) -> anyhow::Result<bool> {
    let before = process.lives().len();
    process.keep_down();
    let alive = process.signal(Signal::TERM);
    let down = process.wait_down(DRAIN_MAX).await;
    if down.is_err() {
        process.kill_9().await?;
    }
    pace::hold(hold(strike)).await;
    process.want_up();
    down.with_context(|| format!("after SIGTERM, for {DRAIN_MAX:?}"))?;
    if let Some(life) = process.lives().get(before) {
        ensure!(!alive || life.status.success(), "{} ended with {} after SIGTERM", life.name, life.status);
    }
    Ok(alive)
}

async fn postgres(topology: &Topology, strike: &Strike) -> anyhow::Result<bool> {
    let (server, hold) = (backend(topology)?.postgres, hold(strike));
    if strike.card == Card::KillPostgres {
        let killed = server.clone();
        blocking(move || held(&killed).kill_9()).await?;
        pace::hold(hold).await;
        blocking(move || held(&server).start_again()).await?;
        return Ok(true);
    }
    let victims = topology.backends().await?;
    let turn = usize::try_from(strike.luck % (victims.len().max(1) as u64))?;
    let Some(&victim) = victims.get(turn) else { return Ok(false) };
    if strike.card == Card::KillBackend {
        return blocking(move || held(&server).kill_backend(victim).map(|()| true)).await;
    }
    let Some(pid) = i32::try_from(victim).ok().and_then(Pid::from_raw) else { return Ok(false) };
    let stopped = kill_process(pid, Signal::STOP).is_ok();
    pace::hold(hold).await;
    // It may have been ended meanwhile, which a stopped process only notices now.
    let _ = kill_process(pid, Signal::CONT);
    Ok(stopped)
}

async fn nats(topology: &Topology, strike: &Strike) -> anyhow::Result<bool> {
    let server = backend(topology)?.nats;
    let (killed, wiped) = (server.clone(), strike.card != Card::KillNats);
    blocking(move || held(&killed).kill_9()).await?;
    pace::hold(hold(strike)).await;
    blocking(move || {
        let mut server = held(&server);
        if wiped { server.start_again_empty() } else { server.start_again() }
    })
    .await?;
    Ok(true)
}

fn rules_of(topology: &Topology, strike: &Strike) -> anyhow::Result<Handle> {
    let link = match strike.card {
        Card::PartWorker | Card::MuteWorker | Card::CutWorker | Card::DelayWorker => {
            Some(&worker(topology, strike)?.to_server)
        }
        Card::LoseReply | Card::CutClients => Some(&node(topology, strike)?.from_clients),
        Card::PartNats | Card::DropNats | Card::DoubleNats | Card::MixNats => {
            node(topology, strike)?.to_nats.as_ref()
        }
        _ => node(topology, strike)?.to_postgres.as_ref(),
    };
    Ok(link.context("there is no such link")?.rules())
}

/// What a fault of a link is to its proxy.
fn rule_of(strike: &Strike) -> Rule {
    let (luck, sql) = (strike.luck, APPEND.to_owned());
    let share = When::Chance([0.02, 0.05, 0.2][usize::try_from(luck % 3).unwrap_or(0)]);
    let direction = [Direction::Up, Direction::Down, Direction::Both][usize::try_from(luck % 3).unwrap_or(0)];
    let message = |fault| Fault::Nats { subject: String::new(), fault };
    match strike.card {
        Card::PartPostgres => Fault::HalfOpen.into(),
        Card::PartNats | Card::PartWorker => Rule::from(Fault::HalfOpen).direction(direction),
        Card::MuteWorker => Rule::from(Fault::HalfOpen).direction(Direction::Up),
        Card::DelayPostgres | Card::DelayWorker => {
            Fault::Delay { ms: 10 + luck % 150, jitter_ms: luck % 50 }.into()
        }
        Card::LoseAnswer => Rule::from(Fault::LoseAnswer { sql }).when(share),
        Card::LateCommit => Rule::from(Fault::LateRequest { sql, ms: 20 + luck % 1_000 }).when(share),
        Card::DoubleNats => message(NatsFault::Duplicate { more: 4 }).into(),
        Card::MixNats if luck % 2 == 0 => message(NatsFault::Replay { ms: 500 + luck % 2_000 }).into(),
        Card::MixNats => Rule::from(message(NatsFault::Swap)).when(When::Chance(0.5)),
        Card::LoseReply => {
            let points = [GrpcPoint::Headers, GrpcPoint::Data, GrpcPoint::Trailers, GrpcPoint::End];
            let at = points[usize::try_from(luck % 4).unwrap_or(0)];
            Rule::from(Fault::Grpc { at }).when(When::Chance(0.2))
        }
        // All that are left lose messages.
        _ => message(NatsFault::Drop).into(),
    }
}

/// Puts a rule in force for a while; true when it struck.
async fn rule(rules: &Handle, rule: Rule, strike: &Strike) -> anyhow::Result<bool> {
    let id = rules.add(rule.named(strike.card.name()))?;
    pace::hold(hold(strike)).await;
    // Healed before a rule that another fault added later, or with all of them at the end.
    let _ = rules.remove(id);
    Ok(rules.fired(id) > 0)
}
