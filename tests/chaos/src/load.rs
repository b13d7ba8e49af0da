//! The clients of a case: each starts runs, steers them as their programs say, and waits for their ends.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everstep_checker::format::{EXPECTED, Expected, ExpectedOutcome, LineWriter, OpKind};
use everstep_tests::program::Wish;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::caller::{Ask, Caller};
use crate::dice::{Dice, Stream};
use crate::history::{History, Reply};
use crate::pace;
use crate::plan::Plan;
use crate::topology::held;
use crate::worker::PROGRAM;

/// Runs of one client at one time.
const OPEN_MAX: usize = 8;
/// Looks at one run, beyond which its client only waits for its result: the checker searches an order of all that
/// was said of a run, and more of it makes that endless.
const LOOKS_MAX: u32 = 8;
/// How long a client waits for a result while there is other work, and when there is none.
const WAITS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(40)];
/// Between two looks for steps in doubt.
const LOOK: Duration = Duration::from_millis(250);
/// Refusals that a program never earns. Each is a bug of the server.
const NEVER: [&str; 6] = [
    "IDEMPOTENCY_MISMATCH",
    "RUN_ALREADY_EXISTS",
    "NAMESPACE_NOT_FOUND",
    "INVALID_ARGUMENT",
    "INVALID_ID",
    "LIMIT_EXCEEDED",
];

/// What clients are told while they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Start runs.
    Load,
    /// The same, when nothing is in the way any more: now every wait has to come to an end.
    Settle,
    /// Start no more, and see those through that there are.
    Drain,
    /// Give up.
    Stop,
}

/// What all clients of a case share.
#[derive(Debug)]
pub struct Load {
    seed: u64,
    addresses: Vec<String>,
    history: History,
    expected: Mutex<LineWriter<Expected>>,
    /// Answers that a server may never give.
    problems: Mutex<Vec<String>>,
    phase: watch::Receiver<Phase>,
}

impl Load {
    /// A load of the servers at `addresses`.
    ///
    /// # Errors
    /// When the files of the case cannot be written.
    pub fn new(
        seed: u64,
        addresses: Vec<String>,
        case: &Path,
        phase: watch::Receiver<Phase>,
    ) -> anyhow::Result<Arc<Self>> {
        let expected = Mutex::new(LineWriter::append(&case.join(EXPECTED))?);
        let history = History::open(case)?;
        Ok(Arc::new(Self { seed, addresses, history, expected, problems: Mutex::default(), phase }))
    }

    /// What the clients write down.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// A client that asks only what it is told to. Its number must be no other's.
    ///
    /// # Errors
    /// When an address is none.
    pub fn caller(&self, number: u32) -> anyhow::Result<Caller> {
        Caller::new(number, &self.addresses, self.history.clone())
    }

    /// Says how a workflow has to end that such a client starts.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn expect(&self, workflow_id: &str, outcome: ExpectedOutcome) -> anyhow::Result<()> {
        held(&self.expected).write(&Expected {
            workflow_id: workflow_id.to_owned(),
            program_seed: 0,
            outcome,
            steps: Vec::new(),
            signals: Vec::new(),
            timers: Vec::new(),
        })
    }

    /// Answers that a server may never give.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        held(&self.problems).clone()
    }

    /// The client with this number, until it has seen all of its runs to their end, or is told to stop.
    ///
    /// # Errors
    /// When a file of the case cannot be written.
    pub async fn client(self: Arc<Self>, number: u32) -> anyhow::Result<()> {
        let mut addresses = self.addresses.clone();
        let turn = usize::try_from(number)? % addresses.len().max(1);
        addresses.rotate_left(turn);
        let caller = Caller::new(number, &addresses, self.history.clone())?;
        let dice = Dice::new(self.seed, Stream::Clients, number);
        let programs = Dice::new(self.seed, Stream::Programs, 1_000 + number);
        let phase = self.phase.clone();
        let mut client =
            Client { number, load: self, caller, dice, programs, phase, open: Vec::new(), started: 0 };
        let mut stop = client.phase.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|phase| *phase == Phase::Stop) => Ok(()),
            done = client.work() => done,
        }
    }
}

/// One run that a client looks after.
#[derive(Debug)]
struct Ticket {
    ask: Ask,
    plan: Plan,
    started: bool,
    /// A look at it said that it has ended.
    closed: bool,
    looks: u32,
    /// When it is canceled or terminated, if that is wanted.
    stop_at: Option<Instant>,
    /// Id of the request that stops it.
    stop_id: String,
    /// Nothing of it is sent before that.
    not_before: Instant,
    /// Ops in a row that came to nothing.
    failures: u32,
    ended: bool,
}

struct Client {
    number: u32,
    load: Arc<Load>,
    caller: Caller,
    dice: Dice,
    programs: Dice,
    phase: watch::Receiver<Phase>,
    open: Vec<Ticket>,
    started: u32,
}

impl Client {
    async fn work(&mut self) -> anyhow::Result<()> {
        loop {
            let loading = matches!(*self.phase.borrow(), Phase::Load | Phase::Settle);
            if !loading && self.open.is_empty() {
                return Ok(());
            }
            if loading && self.open.len() < OPEN_MAX && (self.open.is_empty() || self.dice.percent(30)) {
                let ticket = self.draw()?;
                self.open.push(ticket);
            }
            let turn = usize::try_from(self.dice.number() % (self.open.len().max(1) as u64))?;
            if let Some(mut ticket) = (turn < self.open.len()).then(|| self.open.swap_remove(turn)) {
                if ticket.not_before <= Instant::now() {
                    self.advance(&mut ticket).await?;
                }
                if !ticket.ended {
                    self.open.push(ticket);
                }
            }
            let pause = Duration::from_millis(self.dice.between(2, 40));
            pace::hold(pause).await;
        }
    }

    /// A new run, and what has to become of it.
    fn draw(&mut self) -> anyhow::Result<Ticket> {
        self.started += 1;
        let workflow_id = format!("c{}/{}", self.number, self.started);
        let plan = Plan::draw(&workflow_id, &mut self.programs);
        held(&self.load.expected).write(&plan.expected)?;
        let patience = Duration::from_millis(self.dice.between(0, 1_500));
        let mut ask = Ask {
            request_id: Some(format!("start-{workflow_id}")),
            name: PROGRAM.to_owned(),
            input: serde_json::to_value(plan.source)?,
            workflow_id: workflow_id.clone(),
            ..Ask::default()
        };
        match (plan.first, plan.signals.front(), plan.updates.front()) {
            (OpKind::SignalWithStart, Some((name, id)), _) => {
                (ask.signal, ask.brought) = (name.clone(), json!(id));
            }
            (OpKind::UpdateWithStart, _, Some(update)) => ask.brought = json!(update.id),
            _ => {}
        }
        Ok(Ticket {
            ask,
            stop_at: (plan.wish != Wish::Nothing).then(|| Instant::now() + patience),
            plan,
            started: false,
            closed: false,
            looks: 0,
            stop_id: format!("stop-{workflow_id}"),
            not_before: Instant::now(),
            failures: 0,
            ended: false,
        })
    }

    /// One op of a run: whatever is next, or a look at how it stands.
    async fn advance(&mut self, ticket: &mut Ticket) -> anyhow::Result<()> {
        if !ticket.started {
            return self.start(ticket).await;
        }
        if ticket.stop_at.is_some_and(|at| at <= Instant::now()) {
            return self.stop(ticket).await;
        }
        let draw = self.dice.below(10);
        let Plan { signals, updates, asks_people, .. } = &ticket.plan;
        let waits = !signals.is_empty() || !updates.is_empty() || ticket.stop_at.is_some();
        match draw {
            _ if ticket.closed => self.result(ticket).await,
            0..=3 if !signals.is_empty() => self.signal(ticket).await,
            2..6 if !updates.is_empty() => self.update(ticket).await,
            6.. if *asks_people => self.resolve(ticket).await.map(drop),
            _ if waits => Ok(()),
            0..6 if ticket.looks < LOOKS_MAX => self.describe(ticket).await,
            _ => self.result(ticket).await,
        }
    }

    async fn start(&mut self, ticket: &mut Ticket) -> anyhow::Result<()> {
        let reply = self.ask(ticket.plan.first, &ticket.ask.clone(), ticket).await?;
        let Reply::Ok(value) = reply else { return Ok(()) };
        // Whoever names the first run of a chain is told that it is closed.
        if !ticket.plan.is_chain {
            let run = value.as_ref().and_then(|v| v["run_id"].as_str());
            ticket.ask.run_id = run.map(ToOwned::to_owned);
        }
        match ticket.plan.first {
            OpKind::SignalWithStart => drop(ticket.plan.signals.pop_front()),
            OpKind::UpdateWithStart => self.answered(ticket, value.as_ref()),
            _ => {}
        }
        ticket.started = true;
        Ok(())
    }

    async fn update(&mut self, ticket: &mut Ticket) -> anyhow::Result<()> {
        let Some(asked) = ticket.plan.updates.front().cloned() else { return Ok(()) };
        let ask = Ask { brought: json!(asked.id), request_id: Some(asked.id.clone()), ..ticket.ask.clone() };
        match self.ask(OpKind::Update, &ask, ticket).await? {
            Reply::Ok(value) => self.answered(ticket, value.as_ref()),
            Reply::Fail(reason, _) if reason == "UPDATE_REJECTED" => {
                ticket.plan.updates.pop_front();
                // One that nobody waits for may find that the code has returned, and so may one of a run that is stopped.
                if asked.awaited && ticket.plan.wish == Wish::Nothing {
                    let problem = format!("update {} of {} was refused", asked.id, ask.workflow_id);
                    held(&self.load.problems).push(problem);
                }
            }
            // The run did not wait for it, or was stopped.
            Reply::Fail(reason, _) if reason == "RUN_CLOSED" || reason == "UPDATE_ABANDONED" => {
                ticket.plan.updates.clear();
            }
            Reply::Fail(..) | Reply::Unknown(_) => {}
        }
        Ok(())
    }

    /// An update was answered. One of three is asked for again, and has to be answered in the same way.
    fn answered(&mut self, ticket: &mut Ticket, value: Option<&Value>) {
        let Some(asked) = ticket.plan.updates.front() else { return };
        let answer = value.map_or(&Value::Null, |value| &value["update"]);
        // In a run that follows, it is another program's.
        let known = !answer.is_null() && !ticket.plan.is_chain;
        let wanted = asked.answer.as_ref().map(|answer| json!({"result": answer}));
        if known && wanted.as_ref() != Some(answer) {
            let problem = format!("update {} was answered with {answer}, not {wanted:?}", asked.id);
            held(&self.load.problems).push(problem);
        }
        if !self.dice.percent(33) {
            ticket.plan.updates.pop_front();
        } else if let Some(again) = ticket.plan.updates.front_mut() {
            // The run has what it waited for.
            again.awaited = false;
        }
    }

    /// Says what became of the steps that are in doubt.
    ///
    /// Answers whether the run is known to have ended.
    async fn resolve(&mut self, ticket: &mut Ticket) -> anyhow::Result<bool> {
        let Some((open, doubts)) = self.caller.doubts(&ticket.ask).await else { return Ok(false) };
        for doubt in doubts {
            // The same about the same attempt, however often it is said.
            let said = ticket.plan.says(&doubt.name, doubt.attempt + doubt.step);
            let request_id = Some(format!("{}/{}/{}", doubt.run_id, doubt.step, doubt.attempt));
            let ask = Ask { request_id, resolves: Some((doubt, said)), ..ticket.ask.clone() };
            self.ask(OpKind::Resolve, &ask, ticket).await?;
        }
        Ok(!open)
    }

    /// The same until the run has ended, or for `limit`: whoever only waits for its result would wait for ever.
    async fn attend(&mut self, ticket: &mut Ticket, limit: Duration) -> anyhow::Result<()> {
        let over = Instant::now() + limit;
        while !self.resolve(ticket).await? && Instant::now() < over {
            pace::hold(LOOK).await;
        }
        Ok(())
    }

    async fn signal(&mut self, ticket: &mut Ticket) -> anyhow::Result<()> {
        let Some((name, id)) = ticket.plan.signals.front().cloned() else { return Ok(()) };
        let ask = Ask {
            name,
            input: json!(id),
            nonce: Some(id.clone()),
            request_id: Some(id),
            ..ticket.ask.clone()
        };
        match self.ask(OpKind::Signal, &ask, ticket).await? {
            Reply::Ok(_) => drop(ticket.plan.signals.pop_front()),
            // The arm that wanted it has lost, and the run is over.
            Reply::Fail(reason, _) if reason == "RUN_CLOSED" => ticket.plan.signals.clear(),
            Reply::Fail(..) | Reply::Unknown(_) => {}
        }
        Ok(())
    }

    async fn stop(&mut self, ticket: &mut Ticket) -> anyhow::Result<()> {
        let op = if ticket.plan.wish == Wish::Cancel { OpKind::Cancel } else { OpKind::Terminate };
        let request_id = Some(ticket.stop_id.clone());
        let ask = Ask { name: "as planned".to_owned(), request_id, ..ticket.ask.clone() };
        match self.ask(op, &ask, ticket).await? {
            Reply::Ok(_) => ticket.stop_at = None,
            Reply::Fail(reason, _) if reason == "RUN_CLOSED" => ticket.stop_at = None,
            Reply::Fail(..) | Reply::Unknown(_) => {}
        }
        Ok(())
    }

    async fn describe(&mut self, ticket: &mut Ticket) -> anyhow::Result<()> {
        ticket.looks += 1;
        if let Reply::Ok(Some(value)) = self.ask(OpKind::Describe, &ticket.ask.clone(), ticket).await? {
            ticket.closed = !matches!(value["status"].as_str(), Some("running" | "blocked") | None);
        }
        Ok(())
    }

    async fn result(&mut self, ticket: &mut Ticket) -> anyhow::Result<()> {
        let loading = *self.phase.borrow() == Phase::Load;
        let wait = WAITS[usize::from(!loading)];
        if ticket.plan.asks_people {
            self.attend(ticket, if loading { Duration::ZERO } else { wait }).await?;
        }
        let ask = Ask { wait, ..ticket.ask.clone() };
        if let Reply::Ok(Some(_)) = self.ask(OpKind::Result, &ask, ticket).await? {
            ticket.ended = true;
        }
        Ok(())
    }

    /// Sends it, and waits longer and longer with a run that gets nowhere.
    async fn ask(&mut self, op: OpKind, ask: &Ask, ticket: &mut Ticket) -> anyhow::Result<Reply> {
        self.caller.set_deadline(Duration::from_millis(self.dice.between(1_000, 4_000)));
        let reply = self.caller.op(op, ask).await?;
        let refusal = match &reply {
            Reply::Ok(_) => {
                ticket.failures = 0;
                return Ok(reply);
            }
            Reply::Fail(reason, text) => Some((reason.as_str(), text)),
            Reply::Unknown(text) if text.starts_with("INTERNAL") => Some(("INTERNAL", text)),
            Reply::Unknown(_) => None,
        };
        if let Some((reason, text)) = refusal {
            let absent = reason == "RUN_NOT_FOUND" && ticket.started;
            if NEVER.contains(&reason) || reason == "INTERNAL" || absent {
                let problem = format!("{} of {} was refused: {reason}: {text}", op.as_str(), ask.workflow_id);
                held(&self.load.problems).push(problem);
            }
        }
        ticket.failures += 1;
        let pause = 100u64 << ticket.failures.min(4);
        ticket.not_before = Instant::now() + Duration::from_millis(pause + self.dice.below(pause));
        self.caller.turn();
        Ok(reply)
    }
}
