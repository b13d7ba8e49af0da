//! The clients of a case: each starts runs, steers them as their programs say, and waits for their ends.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everstep_checker::format::{
    EXPECTED, Expected, ExpectedOutcome, ExpectedStep, ExpectedTimer, LineWriter, OpKind,
};
use everstep_tests::program::{Code, Outcome, Prediction, Profile, Program, Source, Wish};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::caller::{Ask, Caller};
use crate::dice::{Dice, Stream};
use crate::history::{History, Reply};
use crate::pace;
use crate::topology::held;
use crate::worker::PROGRAM;

/// Runs of one client at one time.
const OPEN_MAX: usize = 8;
/// Looks at one run, beyond which its client only waits for its result: the checker searches an order of all that
/// was said of a run, and more of it makes that endless.
const LOOKS_MAX: u32 = 8;
/// How long a client waits for a result while there is other work, and when there is none.
const WAITS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(40)];
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
    wish: Wish,
    started: bool,
    /// Still to be sent, in order: name and id.
    signals: VecDeque<(String, String)>,
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
        let program = loop {
            let program =
                Source { seed: self.programs.number(), profile: Profile::Chaos, generation: 0 }.program();
            // The other kinds need a second build of the worker.
            if program.code == Code::Same {
                break program;
            }
        };
        let workflow_id = format!("c{}/{}", self.number, self.started);
        let prediction = program.predict();
        held(&self.load.expected).write(&expected(&workflow_id, &program, &prediction))?;
        let signals = prediction.signals.iter().map(|signal| (signal.name.clone(), signal.id.clone()));
        let patience = Duration::from_millis(self.dice.between(0, 1_500));
        let ask = Ask {
            request_id: Some(format!("start-{workflow_id}")),
            name: PROGRAM.to_owned(),
            input: serde_json::to_value(program.source)?,
            workflow_id: workflow_id.clone(),
            ..Ask::default()
        };
        Ok(Ticket {
            ask,
            wish: program.wish,
            started: false,
            signals: signals.collect(),
            closed: false,
            looks: 0,
            stop_at: (program.wish != Wish::Nothing).then(|| Instant::now() + patience),
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
        match draw {
            _ if ticket.closed => self.result(ticket).await,
            0..=6 if !ticket.signals.is_empty() => self.signal(ticket).await,
            _ if !ticket.signals.is_empty() || ticket.stop_at.is_some() => Ok(()),
            0..=5 if ticket.looks < LOOKS_MAX => self.describe(ticket).await,
            _ => self.result(ticket).await,
        }
    }

    async fn start(&mut self, ticket: &mut Ticket) -> anyhow::Result<()> {
        let reply = self.ask(OpKind::Start, &ticket.ask.clone(), ticket).await?;
        if let Reply::Ok(value) = reply {
            ticket.ask.run_id = value.and_then(|v| v["run_id"].as_str().map(ToOwned::to_owned));
            ticket.started = true;
        }
        Ok(())
    }

    async fn signal(&mut self, ticket: &mut Ticket) -> anyhow::Result<()> {
        let Some((name, id)) = ticket.signals.front().cloned() else { return Ok(()) };
        let ask = Ask {
            name,
            input: json!(id),
            nonce: Some(id.clone()),
            request_id: Some(id),
            ..ticket.ask.clone()
        };
        match self.ask(OpKind::Signal, &ask, ticket).await? {
            Reply::Ok(_) => drop(ticket.signals.pop_front()),
            // The arm that wanted it has lost, and the run is over.
            Reply::Fail(reason, _) if reason == "RUN_CLOSED" => ticket.signals.clear(),
            Reply::Fail(..) | Reply::Unknown(_) => {}
        }
        Ok(())
    }

    async fn stop(&mut self, ticket: &mut Ticket) -> anyhow::Result<()> {
        let op = if ticket.wish == Wish::Cancel { OpKind::Cancel } else { OpKind::Terminate };
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
        let ask = Ask { wait: WAITS[usize::from(!loading)], ..ticket.ask.clone() };
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

/// In the checker's words.
pub(crate) fn expected(workflow_id: &str, program: &Program, prediction: &Prediction) -> Expected {
    let steps = prediction.steps.iter().filter(|step| step.required);
    let timers = prediction.timers.iter().filter(|timer| timer.required);
    Expected {
        workflow_id: workflow_id.to_owned(),
        program_seed: program.source.seed,
        outcome: outcome(&prediction.outcome),
        steps: steps
            .map(|step| ExpectedStep { nonce: step.nonce.clone(), attempts_min: step.attempts_min })
            .collect(),
        signals: prediction.signals.iter().map(|signal| signal.id.clone()).collect(),
        timers: timers
            .map(|timer| ExpectedTimer { nonce: timer.nonce.clone(), delay_us: timer.delay_us })
            .collect(),
    }
}

fn outcome(predicted: &Outcome) -> ExpectedOutcome {
    match predicted {
        Outcome::Completed { output_sha256 } => {
            ExpectedOutcome::Completed { output_sha256: output_sha256.clone() }
        }
        Outcome::Failed { failure_kind } => ExpectedOutcome::Failed { failure_kind: failure_kind.clone() },
        Outcome::Canceled => ExpectedOutcome::Canceled,
        Outcome::Terminated => ExpectedOutcome::Terminated,
        // Only programs of virtual time go on as others.
        Outcome::Continued => ExpectedOutcome::Any { of: Vec::new() },
        Outcome::Any { of } => ExpectedOutcome::Any { of: of.iter().map(outcome).collect() },
    }
}
