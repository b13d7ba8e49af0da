//! Clients: each starts a run, signals it, and keeps asking until it is answered, also when it has died
//! meanwhile and knows nothing but its request ids.

use std::collections::BTreeSet;
use std::sync::Arc;

use everstep_core::{
    CommandBody, CommandId, ConflictPolicy, Duration, Event, EventBody, Payload, Rejection, ReusePolicy,
    RunId, StartRun, TraceContext,
};
use everstep_engine::{Error, Started};
use everstep_tests::program::{End, PlannedSignal, PlannedUpdate, Prediction, Program, Source, Wish};
use uuid::Uuid;

/// One client and the run it cares for.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) namespace: &'static str,
    /// Its number within its namespace: clients of the same number use the same ids.
    number: usize,
    pub(crate) program: Arc<Program>,
    /// What becomes of each run of the chain, and the program of each.
    pub(crate) parts: Vec<(Arc<Program>, Prediction)>,
    /// The signals of all of them, in the order in which they are sent.
    pub(crate) signals: Vec<PlannedSignal>,
    /// Signals after which it does what it wishes besides.
    wish_after: usize,
    memory: Memory,
    /// What was ever acknowledged, whoever remembers.
    pub(crate) run: Option<RunId>,
    pub(crate) acked: BTreeSet<String>,
}

/// What a client knows until it dies.
#[derive(Clone, Debug, Default)]
struct Memory {
    run: Option<RunId>,
    /// Which run of the chain that is.
    part: usize,
    signals: usize,
    /// Updates that were carried out, or came too late.
    updates: BTreeSet<String>,
    /// It asks for an update next, if there is one left.
    updates_next: bool,
    wished: bool,
}

/// What a client asks next.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Start(Box<StartRun>),
    Command { run: RunId, id: CommandId, body: CommandBody },
    Update { run: RunId, id: String },
    Nothing,
}

impl Client {
    pub(crate) fn new(namespace: &'static str, number: usize, source: Source, wish_after: u64) -> Self {
        let program = Arc::new(source.program());
        let goes_on =
            |last: &Arc<Program>| (last.end == End::Continue).then(|| Arc::new(last.source.next().program()));
        let parts: Vec<_> = std::iter::successors(Some(Arc::clone(&program)), goes_on)
            .map(|program| (Arc::clone(&program), program.predict()))
            .collect();
        let signals: Vec<_> = parts.iter().flat_map(|(_, p)| p.signals.iter().cloned()).collect();
        let wish_after = wish_after as usize % (signals.len() + 1);
        Self {
            namespace,
            number,
            program,
            parts,
            signals,
            wish_after,
            memory: Memory::default(),
            run: None,
            acked: BTreeSet::new(),
        }
    }

    pub(crate) fn ask(&self) -> Ask {
        let Some(run) = self.memory.run else { return Ask::Start(Box::new(self.start())) };
        let command = |n: usize, body| Ask::Command { run, id: self.command_id(n), body };
        let reason = "sim".to_owned();
        let wishes = !self.memory.wished && self.memory.signals >= self.wish_after;
        match self.program.wish {
            Wish::Cancel if wishes => return command(1_000, CommandBody::Cancel { reason }),
            Wish::Terminate if wishes => return command(2_000, CommandBody::Terminate { reason }),
            Wish::Nothing | Wish::Cancel | Wish::Terminate => {}
        }
        let signal = self.signals.get(self.memory.signals);
        if let Some(update) = self.next_update().filter(|_| self.memory.updates_next || signal.is_none()) {
            return Ask::Update { run, id: update.id.clone() };
        }
        let Some(signal) = signal else { return Ask::Nothing };
        let input = Payload::json(serde_json::Value::from(signal.id.clone()).to_string());
        let (name, signal_id) = (signal.name.clone(), signal.id.clone());
        command(self.memory.signals, CommandBody::Signal { name, signal_id, input })
    }

    /// The next update that the program of the present run waits for.
    fn next_update(&self) -> Option<&PlannedUpdate> {
        let (_, prediction) = self.parts.get(self.memory.part)?;
        prediction.updates.iter().find(|planned| !self.memory.updates.contains(&planned.id))
    }

    /// What it asks next is best asked in the middle of something: that the run ends, or what has to be carried from
    /// one run to the next.
    pub(crate) fn is_eager(&self) -> bool {
        let goes_on =
            self.parts.get(self.memory.part).is_some_and(|(program, _)| program.end == End::Continue);
        match self.ask() {
            Ask::Command { body: CommandBody::Cancel { .. } | CommandBody::Terminate { .. }, .. } => true,
            Ask::Command { .. } => goes_on,
            Ask::Start(_) | Ask::Update { .. } | Ask::Nothing => false,
        }
    }

    /// It asks for one thing, and then for the other.
    pub(crate) fn take_turns(&mut self) {
        self.memory.updates_next = !self.memory.updates_next;
    }

    /// The run that it knows of.
    pub(crate) fn present_run(&self) -> Option<RunId> {
        self.memory.run
    }

    /// Its workflow goes on in this run.
    pub(crate) fn goes_on_in(&mut self, next: RunId) {
        self.memory.run = Some(next);
        self.memory.part += 1;
    }

    /// Whether it is this client that asks for the update.
    pub(crate) fn plans(&self, update_id: &str) -> bool {
        self.parts.iter().any(|(_, p)| p.updates.iter().any(|planned| planned.id == update_id))
    }

    /// An update that it plans was accepted, or comes too late.
    pub(crate) fn updated(&mut self, update_id: &str, too_late: bool) -> Result<(), String> {
        let mut planned = self.parts.iter().flat_map(|(_, p)| &p.updates);
        let required = planned.any(|planned| planned.id == update_id && planned.required);
        if too_late && required {
            return Err(format!("the run has ended, and update {update_id} was not accepted yet"));
        }
        self.memory.updates.insert(update_id.to_owned());
        Ok(())
    }

    fn start(&self) -> StartRun {
        let source = serde_json::to_vec(&self.program.source).unwrap_or_default();
        StartRun {
            namespace: self.namespace.to_owned(),
            workflow_id: format!("w{}", self.number),
            workflow_type: "program".to_owned(),
            task_queue: "default".to_owned(),
            input: Payload::json(source),
            request_id: format!("start-{}", self.number),
            run_timeout: Some(Duration::from_secs(100_000)),
            reuse: ReusePolicy::Reject,
            conflict: ConflictPolicy::Fail,
            trace: TraceContext::default(),
            identity: "sim".to_owned(),
            ..StartRun::default()
        }
    }

    fn command_id(&self, n: usize) -> CommandId {
        CommandId::from_uuid(Uuid::from_u128(((self.number as u128) << 64) | n as u128 | (0xc11e << 100)))
    }

    pub(crate) fn is_done(&self) -> bool {
        // What a later run of the chain waits for is asked for when there is that run.
        let later = self.parts.iter().skip(self.memory.part + 1);
        let waits = later.flat_map(|(_, p)| &p.updates).next().is_some();
        matches!(self.ask(), Ask::Nothing) && !waits
    }

    /// The process ends, and another begins with the same request ids.
    pub(crate) fn die(&mut self) {
        self.memory = Memory::default();
    }

    /// The run that a start was answered with is the client's own: in its namespace, under its ids.
    pub(crate) fn owns(&self, first: &Event) -> Result<(), String> {
        let asked = self.start();
        let EventBody::RunStarted(begun) = &first.body else {
            return Err(format!("it is the answer to a start, and begins with {}", first.body.kind()));
        };
        let asked = (&asked.namespace, &asked.workflow_id, &asked.request_id);
        let begun = (&begun.namespace, &begun.workflow_id, &begun.request_id);
        if asked == begun { Ok(()) } else { Err(format!("a start of {asked:?} was answered with {begun:?}")) }
    }

    pub(crate) fn started(&mut self, result: Result<Started, Error>) -> Result<(), String> {
        match result {
            Ok(started) => {
                if let Some(before) = self.run.filter(|before| *before != started.run_id) {
                    return Err(format!("one request id, two runs: {before} and {}", started.run_id));
                }
                self.run = Some(started.run_id);
                if self.memory.run.is_none() {
                    self.memory.run = self.run;
                }
                Ok(())
            }
            Err(error) => retryable(&error),
        }
    }

    /// The answer to what was asked. What is acknowledged stands in `log` at once.
    pub(crate) fn answered(
        &mut self,
        (run, asked): (RunId, &CommandBody),
        result: Result<(), Error>,
    ) -> Result<(), String> {
        let closed = match result {
            Ok(()) => false,
            // It has gone on in another run, which the same request is for.
            Err(Error::Rejected(Rejection::RunClosed { successor: Some(next), .. })) => {
                if self.memory.run == Some(run) {
                    self.goes_on_in(next);
                }
                return Ok(());
            }
            // It may end before the request reaches it: a cancel or terminate then has nothing to do.
            Err(Error::Rejected(Rejection::RunClosed { .. })) => true,
            Err(error) => return retryable(&error),
        };
        match asked {
            CommandBody::Signal { signal_id, .. } => {
                let at = self.signals.iter().position(|s| s.id == *signal_id);
                let Some(planned) = at.and_then(|at| self.signals.get(at)) else {
                    return Err(format!("signal {signal_id} was never planned"));
                };
                if closed && planned.required && self.program.wish == Wish::Nothing {
                    return Err(format!("the run has ended, and {signal_id} was not there yet"));
                }
                if closed && self.acked.contains(signal_id) {
                    return Err(format!("signal {signal_id} was acknowledged once and is unknown now"));
                }
                if !closed {
                    self.acked.insert(signal_id.clone());
                }
                // An answer to a question of before its death tells the client nothing new.
                if at == Some(self.memory.signals) {
                    self.memory.signals += 1;
                }
            }
            CommandBody::Terminate { .. } if closed => {
                return Err("a run that waits to be terminated has ended otherwise".to_owned());
            }
            _ => self.memory.wished = true,
        }
        Ok(())
    }
}

/// What an acknowledgement promises stands in the log.
pub(crate) fn is_recorded(asked: &CommandBody, history: &[Event]) -> bool {
    history.iter().any(|event| match (asked, &event.body) {
        (CommandBody::Signal { signal_id, .. }, EventBody::SignalReceived { signal_id: recorded, .. }) => {
            signal_id == recorded
        }
        (CommandBody::Cancel { .. }, EventBody::CancelRequested { .. })
        | (CommandBody::Terminate { .. }, EventBody::RunTerminated { .. }) => true,
        _ => false,
    })
}

fn retryable(error: &Error) -> Result<(), String> {
    match error {
        Error::Store(_) | Error::Contention { .. } | Error::Stopping => Ok(()),
        error => Err(format!("a good request was refused: {error}")),
    }
}
