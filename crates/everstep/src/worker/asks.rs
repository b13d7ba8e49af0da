//! Questions to the code of runs: of those that this worker holds, and of others that it only replays.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use everstep_core::{BlockKind, Blocked, EventBody, Failure, Payload, RunId, Seq};
use everstep_proto::api::{self, answer::Outcome, ask, worker_message};
use everstep_proto::{history, wire};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Settings;
use super::outbox::Outbox;
use crate::ctx::{Known, QueryFn};
use crate::machine::{Machine, Obstacle, handlers};

/// What Hello calls it.
pub(super) const CAPABILITY: &str = "asks";
/// A run waits for a handler no longer than this.
const HANDLER_MAX: Duration = Duration::from_secs(5);
/// Handlers that run at one time, those included that nobody waits for any more.
const HANDLERS_MAX: usize = 64;
/// Histories that are replayed at one time.
const REPLAYS_MAX: usize = 8;

/// How much is answered at one time. Code of users that does not come to an end keeps its place.
#[derive(Debug)]
pub(crate) struct Places {
    handlers: Arc<Semaphore>,
    replays: Arc<Semaphore>,
}

impl Places {
    /// Those of histories that are replayed.
    pub(super) fn replays(&self) -> Arc<Semaphore> {
        Arc::clone(&self.replays)
    }
}

impl Default for Places {
    fn default() -> Self {
        let places = |n| Arc::new(Semaphore::new(n));
        Self { handlers: places(HANDLERS_MAX), replays: places(REPLAYS_MAX) }
    }
}

/// What a run's code is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// For a value.
    Query,
    /// Whether it agrees to an update.
    Validate,
}

impl Kind {
    /// What in the run's code answers.
    fn handler(self, machine: &Machine, name: &str) -> Result<QueryFn, Failure> {
        match self {
            Self::Query => machine.query(name),
            Self::Validate => machine.validator(name),
        }
    }

    fn outcome(self, result: Result<Payload, Failure>) -> Outcome {
        match (self, result) {
            (Self::Query, Ok(value)) => Outcome::Value(wire::encode_payload(&value)),
            (Self::Validate, Ok(_)) => Outcome::Passed(api::Passed {}),
            (_, Err(failure)) => refused(&failure),
        }
    }
}

/// A question that waits for its answer. Dropped without one, it says so: the server asks somebody else.
#[derive(Debug)]
pub(super) struct Asked {
    id: String,
    kind: Kind,
    pub(super) name: String,
    input: Payload,
    pub(super) at_least: Seq,
    /// When nobody waits for it any more.
    until: Instant,
    outbox: Arc<Outbox>,
    answered: bool,
}

impl Asked {
    pub(super) fn answer(mut self, seq: Seq, outcome: Outcome) {
        self.say(seq, outcome);
    }

    /// As [`answer`](Self::answer), or nothing: its asker has gone.
    pub(super) fn answer_if(mut self, seq: Seq, outcome: Option<Outcome>) {
        self.answered = true;
        if let Some(outcome) = outcome {
            self.say(seq, outcome);
        }
    }

    /// When nobody waits for it any more.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    pub(super) fn is_late(&self) -> bool {
        self.until <= Instant::now()
    }

    fn say(&mut self, seq: Seq, outcome: Outcome) {
        self.answered = true;
        let answer = api::Answer { ask_id: std::mem::take(&mut self.id), seq, outcome: Some(outcome) };
        self.outbox.send(worker_message::Message::Answer(answer));
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.answered {
            self.say(0, Outcome::Gone("the run has left this worker".to_owned()));
        }
    }
}

/// Questions that have not come whole yet.
#[derive(Debug, Default)]
pub(super) struct Asks {
    partial: HashMap<String, Vec<history::Event>>,
}

/// A question as it came.
pub(super) enum Question {
    /// Of the run that this worker holds under the epoch.
    Owned(String, u32, Asked),
    /// Of a run whose history came along.
    Foreign(RunId, Vec<history::Event>, Asked),
    /// Of whether this worker's code fits a history.
    Check(RunId, Vec<history::Event>, Asked),
}

impl Asks {
    /// What a lost stream left half said does not come again.
    pub(super) fn clear(&mut self) {
        self.partial.clear();
    }

    /// The question, once all of it has come.
    pub(super) fn gather(&mut self, ask: api::Ask, outbox: &Arc<Outbox>) -> Option<Question> {
        let api::Ask { ask_id, run_id, epoch, at_least_seq, events, more, wait, what } = ask;
        let history = self.partial.entry(ask_id.clone()).or_default();
        history.extend(events);
        if more {
            return None;
        }
        let events = self.partial.remove(&ask_id).unwrap_or_default();
        let wait = wait.and_then(|w| wire::decode_duration("wait", w).ok()).unwrap_or_default();
        let mut asked = Asked {
            id: ask_id,
            kind: Kind::Query,
            name: String::new(),
            input: Payload::default(),
            at_least: at_least_seq,
            until: Instant::now() + wait.to_std(),
            outbox: Arc::clone(outbox),
            answered: false,
        };
        if let Some(ask::What::Check(api::CheckHistory {})) = what {
            return run_id.parse().ok().map(|run| Question::Check(run, events, asked));
        }
        let (kind, name, input) = match what {
            Some(ask::What::Query(api::Query { name, input })) => (Kind::Query, name, input),
            Some(ask::What::Validate(api::Validate { name, input })) => (Kind::Validate, name, input),
            // A newer server asks for something that this worker cannot know.
            _ => {
                asked.answer(0, Outcome::Gone("the question is not understood".to_owned()));
                return None;
            }
        };
        asked.kind = kind;
        asked.name = name;
        asked.input = wire::decode_payload(input);
        match run_id.parse() {
            Ok(run) if epoch == 0 => Some(Question::Foreign(run, events, asked)),
            Ok(_) => Some(Question::Owned(run_id, epoch, asked)),
            Err(_) => None,
        }
    }
}

fn refused(failure: &Failure) -> Outcome {
    Outcome::Refused(wire::encode_failure(failure))
}

/// Runs a handler on a thread of its own: code that does not come to an end holds up neither the run for ever nor
/// its lease. `None` once nobody waits for it any more.
async fn handle(
    settings: Arc<Settings>,
    (kind, handler): (Kind, QueryFn),
    input: Payload,
    until: Instant,
) -> Option<Outcome> {
    let places = Arc::clone(&settings.places.handlers);
    let running = async {
        let place = places.acquire_owned().await.ok()?;
        let handled = move || {
            let _place = place;
            handlers::answer(&handler, input)
        };
        tokio::task::spawn_blocking(handled).await.ok()
    };
    let limit = Instant::now() + HANDLER_MAX;
    match tokio::time::timeout_at(limit.min(until), running).await {
        Ok(Some(result)) => Some(kind.outcome(result)),
        _ if until <= limit => None,
        _ => {
            let message = format!("the handler took longer than {} s", HANDLER_MAX.as_secs());
            Some(refused(&Failure::new("QueryTimeout", message)))
        }
    }
}

impl Asked {
    /// What in the run's code answers.
    pub(super) fn handler(&self, machine: &Machine) -> Result<QueryFn, Failure> {
        self.kind.handler(machine, &self.name)
    }

    /// True when something is recorded because of the answer.
    pub(super) fn leads_to_event(&self) -> bool {
        self.kind == Kind::Validate
    }

    /// The answer of `handler`, some time later.
    pub(super) fn handled_by(
        &mut self,
        settings: Arc<Settings>,
        handler: QueryFn,
    ) -> impl Future<Output = Option<Outcome>> + Send + 'static {
        handle(settings, (self.kind, handler), std::mem::take(&mut self.input), self.until)
    }

    /// Replays the history of a run that this worker does not hold, and answers from there.
    pub(super) async fn replayed(
        mut self,
        settings: Arc<Settings>,
        run: RunId,
        history: Vec<history::Event>,
    ) {
        let places = Arc::clone(&settings.places.replays);
        let question = (self.kind, std::mem::take(&mut self.name), std::mem::take(&mut self.input));
        let replay = async {
            let place = places.acquire_owned().await.ok()?;
            let replayed = move || {
                let _place = place;
                speak(&settings, run, history, question)
            };
            tokio::task::spawn_blocking(replayed).await.ok()
        };
        match tokio::time::timeout_at(self.until, replay).await {
            Ok(Some((seq, outcome))) => self.answer(seq, outcome),
            Ok(None) => self.answer(0, Outcome::Gone("the replay ended early".to_owned())),
            Err(_) => self.answer_if(0, None),
        }
    }
}

/// What the code says after the whole history, and after which event that is. No work is taken from it.
fn speak(
    settings: &Settings,
    run: RunId,
    history: Vec<history::Event>,
    (kind, name, input): (Kind, String, Payload),
) -> (Seq, Outcome) {
    let gone = |why: String| (0, Outcome::Gone(why));
    let mut events = Vec::with_capacity(history.len());
    for event in history {
        match wire::decode_event(event) {
            Ok(decoded) => events.push(decoded.event),
            Err(error) => return gone(format!("the history is not understood: {error}")),
        }
    }
    let Some((first, EventBody::RunStarted(start))) = events.first().map(|e| (e, &e.body)) else {
        return gone("the history does not begin with RunStarted".to_owned());
    };
    let Some(workflow) = settings.workflows.get(&start.workflow_type) else {
        return gone(format!("this worker has no workflow type '{}'", start.workflow_type));
    };
    let mut machine = Machine::new(run, start, first.at, workflow, Known::of(&events));
    for (event, seq) in events.iter().zip(1..) {
        if event.seq != seq {
            return gone(format!("event {} of the history stands at place {seq}", event.seq));
        }
        if let Err(obstacle) = machine.apply(event) {
            return (
                machine.seen(),
                Outcome::Mismatch(wire::encode_blocked(&unfit(settings, event.seq, obstacle))),
            );
        }
    }
    let result = kind.handler(&machine, &name).and_then(|handler| handlers::answer(&handler, input));
    (machine.seen(), kind.outcome(result))
}

/// Why this build cannot speak for the run.
fn unfit(settings: &Settings, at_seq: Seq, obstacle: Obstacle) -> Blocked {
    let blocked = match obstacle {
        Obstacle::Blocked(blocked) => *blocked,
        Obstacle::Panicked(message) => Blocked {
            kind: BlockKind::Nondeterminism,
            at_seq,
            expected: "code that goes on".to_owned(),
            produced: format!("code that {message}"),
            source: String::new(),
            hint: String::new(),
            build_id: String::new(),
        },
    };
    Blocked { build_id: settings.build_id.clone(), ..blocked }
}
