//! Kitchen-sink workflow programs: generated from a seed, run by the simulation's model and by an interpreter
//! over the SDK, with an outcome that is known before anything runs.
//!
//! # What a program gives back
//! The output is a list of lines in *source order*, whatever the order in time:
//!
//! | op | lines |
//! |---|---|
//! | step | `step <nonce> <bytes>`, both read from the recorded result |
//! | step that ends in a final failure | `refused <nonce>` |
//! | guarded step | as a step; or `failed InDoubt`, when its code gives up what is in doubt |
//! | version | `version 0`; or `version 1`, then the line of its step |
//! | sleep | `slept <nonce>` |
//! | child | `child <nonce> <hash of its output>`; or `child <nonce> <kind>`, when it fails |
//! | queued step | as a step; or `failed <kind>`, when its attempts or its time are used up or its policy gives up |
//! | told child | as a child; then `told <nonce> RunClosed`, when it is told something after its end |
//! | message to nobody | `told <nonce> RunNotFound` |
//! | update | `update <id>` |
//! | upsert | none |
//! | signal | `signal <id>`, read from the signal's input |
//! | parallel | the lines of its branches, the first branch's first |
//! | race | `won <index>`, then the lines of the arm that won |
//!
//! Its hash ([`output_sha256`]) is the SHA-256 of these lines as a JSON array of strings, which is also the
//! JSON text of the run's result. Where a race may go several ways, each way has a hash of its own.
//!
//! # Signals
//! Waits at the top level all wait for the name [`SIGNAL_NAME`] and take signals in the order of the log; so a
//! client sends a program's signals in the order of [`Prediction::signals`], each acknowledged before the next.
//! A wait inside a branch or arm has a name of its own: its id.
//!
//! # Updates
//! The code takes updates of the name [`UPDATE_NAME`], whose input is their id as a JSON string, at any time: those that
//! a program waits for ([`Prediction::updates`]), and any other. It does not agree to ids that begin with `no-`.
//!
//! # Two builds
//! A program is run by [`Build::A`] or [`Build::B`] ([`Build::of`] tells by the build id). [`Code`] says in
//! what the two differ: nothing but that only `B` knows of versions, the name of one step (what one has recorded blocks the other), or a panic
//! that only `A` has.
//!
//! What is *not* here: what a step does to the world ([`Effects`] is the caller's), and clients.

mod dice;
mod generate;
mod interpret;
mod ops;
mod predict;
#[cfg(test)]
mod tests;

use everstep_core::{DoubtPolicy, Duration, RetryPolicy};
use serde::{Deserialize, Serialize};

pub use dice::Dice;
pub use interpret::{Effects, Work, interpret, run_queued};
pub use ops::{
    Beat, By, CANCELED, Course, QUEUED_STEP, QueuedStep, RUN_CLOSED, RUN_NOT_FOUND, STEP_TIMEOUT, Tell,
    UNSERVED_QUEUE, UPDATE_NAME, UPSERTED, agrees, nobody, untold_line, update_answer, update_line,
};
pub use predict::{
    Outcome, PlannedQueued, PlannedSignal, PlannedStep, PlannedTimer, PlannedUpdate, Prediction,
    output_sha256,
};

/// The name that waits of the top level wait for.
pub const SIGNAL_NAME: &str = "go";
/// Kind of the failure of a step that fails and is tried again.
pub const FLAKY: &str = "Flaky";
/// Kind of the failure of a step that ends in a final failure.
pub const REFUSED: &str = "Refused";
/// Kind of the failure of a run whose program ends in an error.
pub const UNCAUGHT: &str = "Uncaught";
/// What the panic of a poisoned program says.
pub const POISON: &str = "poisoned";

/// How large a program is, and how long it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Virtual time: sleeps of seconds cost nothing, large results do.
    Sim,
    /// Real time: everything below a second, some results large.
    Chaos,
}

/// What a program is generated from; small enough for a workflow's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The seed.
    pub seed: u64,
    /// The profile.
    pub profile: Profile,
    /// Which program this is of a workflow that continues as new, from 0.
    #[serde(default, skip_serializing_if = "is_first")]
    pub generation: u8,
}

fn is_first(generation: &u8) -> bool {
    *generation == 0
}

/// A workflow, as data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// What it was generated from.
    pub source: Source,
    /// What it does, in order.
    pub ops: Vec<Op>,
    /// How it ends by itself.
    pub end: End,
    /// What its client wants besides.
    pub wish: Wish,
    /// In what its two builds differ.
    pub code: Code,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// A step.
    Step(Step),
    /// A step whose attempt is in doubt when its worker is lost in the middle.
    Guarded {
        /// The step.
        step: Step,
        /// What the code does about a doubt.
        doubt: Doubt,
    },
    /// A change that only [`Build::B`] knows of: a run that is at version 1 does one step more.
    Version {
        /// The change.
        change: String,
        /// The step.
        step: Step,
    },
    /// A durable sleep.
    Sleep {
        /// Its name in the program.
        nonce: String,
        /// How long.
        us: u64,
    },
    /// Waits for a signal; its input is its id as a JSON string.
    Signal {
        /// The name that is waited for.
        name: String,
        /// The signal's id.
        id: String,
    },
    /// A child: another program, as a run of its own.
    Child {
        /// Its name in the program.
        nonce: String,
        /// What the child is generated from.
        source: Source,
        /// It is left alone when this run ends first; else it is stopped.
        abandoned: bool,
    },
    /// A step that any worker with room runs.
    Queued(QueuedStep),
    /// A child that is told something before it is waited for.
    Tell(Tell),
    /// A message to a workflow id that nobody has.
    TellNobody {
        /// Its name in the program.
        nonce: String,
    },
    /// Waits until an update has been carried out.
    Update {
        /// The update's id, and its input as a JSON string.
        id: String,
        /// What its handler does.
        step: Option<Step>,
    },
    /// Says something of the run: sets its search attribute [`UPSERTED`].
    Upsert {
        /// To this.
        n: i64,
    },
    /// All branches, side by side.
    Parallel(Vec<Vec<Op>>),
    /// The arm that ends first; the others are dropped.
    Race(Vec<Vec<Op>>),
    /// Waits for a signal that nobody sends: what an arm ends with that cannot win.
    Never,
}

/// What the code of a guarded step does about a doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doubt {
    /// Runs the next attempt.
    Retry,
    /// Fails the step.
    Fail,
    /// Waits for a person, who says what became of the attempt or asks for the next one.
    AskHuman,
}

impl Doubt {
    /// In the words of the core.
    pub fn policy(self) -> DoubtPolicy {
        match self {
            Self::Retry => DoubtPolicy::Retry,
            Self::Fail => DoubtPolicy::Fail,
            Self::AskHuman => DoubtPolicy::AskHuman,
        }
    }
}

/// A step: its attempts `1..=fails` fail, the next one ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its name in the program, unique among all programs of other seeds too.
    pub nonce: String,
    /// Attempts that fail first.
    pub fails: u32,
    /// How long each attempt takes.
    pub slow_us: u64,
    /// Bytes of its result, as text.
    pub bytes: usize,
    /// It ends in a final failure instead of a result. The workflow takes note and goes on.
    pub refused: bool,
}

/// How a program ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It returns its output.
    Output,
    /// It returns an error that nobody catches: the run fails with kind [`UNCAUGHT`].
    Uncaught,
    /// It goes on in a new run, as the program of [`Source::next`].
    Continue,
}

/// What a client wants of the run besides its signals. Unless that is nothing, the program waits for ever
/// after its last op, so that it cannot end before the wish reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Nothing.
    Nothing,
    /// A cancel at any time. The workflow drops what it does and ends as canceled.
    Cancel,
    /// A terminate at any time.
    Terminate,
}

/// In what the builds of a program differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// In nothing.
    Same,
    /// The step with this nonce has another name: once it is recorded, the other build is blocked.
    Renamed {
        /// Which step.
        nonce: String,
    },
    /// [`Build::A`] panics when it comes to the op of the top level with this index.
    Poisoned {
        /// Which op; the number of ops for the end.
        before: usize,
    },
}

/// Which code a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Build {
    /// The one that poison is in.
    A,
    /// The other.
    B,
}

impl Build {
    /// The build of a worker with this build id: `B` when it begins with that letter.
    pub fn of(build_id: &str) -> Self {
        if build_id.starts_with('B') { Self::B } else { Self::A }
    }
}

/// How an attempt of a step ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// With a failure of kind [`FLAKY`] that is tried again.
    Flaky,
    /// With a final failure of kind [`REFUSED`], whose message is the nonce.
    Refused,
    /// With the result.
    Well,
}

impl Source {
    /// The program; the same one each time.
    pub fn program(self) -> Program {
        generate::program(self)
    }

    /// What the program that goes on after this one is generated from.
    #[must_use]
    pub fn next(self) -> Self {
        let seed = self.seed.rotate_left(17) ^ 0x636f_6e74_696e_7565;
        Self { seed, generation: self.generation + 1, ..self }
    }
}

/// The generation of children.
const CHILD: u8 = u8::MAX;
/// The generation of children that wait for signals of their parent.
const TOLD: u8 = CHILD - 1;
/// The generation of children that wait until their parent stops them.
const STOPPED: u8 = CHILD - 2;

impl Source {
    /// What the child with this number is generated from.
    #[must_use]
    pub fn child(self, number: u32) -> Self {
        let seed = self.seed.rotate_left(29) ^ (u64::from(number) << 32) ^ 0x6368_696c_6472_656e;
        Self { seed, generation: CHILD, ..self }
    }

    /// The same, of one that waits for its parent: to be sent signals, or to be stopped.
    #[must_use]
    pub fn told_child(self, number: u32, stopped: bool) -> Self {
        Self { generation: if stopped { STOPPED } else { TOLD }, ..self.child(number) }
    }

    /// Whether it is that of a child that waits for signals of its parent.
    pub fn waits_for_signals(self) -> bool {
        self.generation == TOLD
    }

    /// Whether it is that of a child that waits until its parent stops it.
    pub fn waits_for_stop(self) -> bool {
        self.generation == STOPPED
    }

    /// Whether this is a child's.
    pub fn is_child(self) -> bool {
        self.generation >= STOPPED
    }
}

impl Program {
    /// The name of a step in a build.
    pub fn step_name(&self, step: &Step, build: Build) -> String {
        let number = step.nonce.rsplit('.').next().unwrap_or_default();
        let renamed = matches!(&self.code, Code::Renamed { nonce } if *nonce == step.nonce);
        if renamed && build == Build::B { format!("renamed-{number}") } else { format!("step-{number}") }
    }

    /// Whether a build panics before the op of the top level with this index.
    pub fn is_poisoned(&self, build: Build, index: usize) -> bool {
        build == Build::A && self.code == Code::Poisoned { before: index }
    }
}

impl Profile {
    /// How failed steps are tried again.
    pub fn retry_policy(self) -> RetryPolicy {
        match self {
            Self::Sim => RetryPolicy::default(),
            Self::Chaos => RetryPolicy {
                initial_interval: Duration::from_millis(20),
                maximum_interval: Duration::from_millis(200),
                ..RetryPolicy::default()
            },
        }
    }
}

/// Length of every nonce.
const NONCE_LEN: usize = 20;

impl Step {
    /// How its attempt with this number ends.
    pub fn ends(&self, attempt: u32) -> Ends {
        match attempt > self.fails {
            false => Ends::Flaky,
            true if self.refused => Ends::Refused,
            true => Ends::Well,
        }
    }

    /// What it returns: its nonce, then filling that is no other step's.
    pub fn result(&self) -> String {
        let length = self.bytes.max(self.nonce.len());
        let mut result = self.nonce.repeat(length.div_ceil(self.nonce.len().max(1)));
        result.truncate(length);
        result
    }
}

/// The line of a step that returned `result`.
pub fn step_line(result: &str) -> String {
    format!("step {} {}", result.get(..NONCE_LEN).unwrap_or(result), result.len())
}

/// The line of a step that ended in a failure.
pub fn failure_line(kind: &str, message: &str) -> String {
    if kind == REFUSED { format!("refused {message}") } else { format!("failed {kind}") }
}

/// Kind of the failure of a guarded step that gives up what is in doubt.
pub const IN_DOUBT: &str = "InDoubt";

/// The line of a version.
pub fn version_line(version: u32) -> String {
    format!("version {version}")
}

/// The line of a sleep.
pub fn sleep_line(nonce: &str) -> String {
    format!("slept {nonce}")
}

/// The workflow that runs programs, and children of programs.
pub const WORKFLOW_TYPE: &str = "program";

/// The line of a child that returned these lines.
pub fn child_line(nonce: &str, output: &[String]) -> String {
    format!("child {nonce} {}", output_sha256(output))
}

/// The line of a child that gave no output.
pub fn no_child_line(nonce: &str, kind: &str) -> String {
    format!("child {nonce} {kind}")
}

/// The line of a signal whose input is this id.
pub fn signal_line(id: &str) -> String {
    format!("signal {id}")
}

/// The first line of a race.
pub fn won_line(index: usize) -> String {
    format!("won {index}")
}
