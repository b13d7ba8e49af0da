//! What becomes of a program, before it runs.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    CANCELED, Doubt, End, IN_DOUBT, Op, Program, QueuedStep, REFUSED, RUN_CLOSED, RUN_NOT_FOUND, Source,
    Step, UNCAUGHT, Wish, child_line, failure_line, no_child_line, signal_line, sleep_line, step_line,
    untold_line, update_answer, update_line, version_line, won_line,
};

/// How a run ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// With an output of this hash.
    Completed {
        /// SHA-256 of the output's JSON text, in hex.
        output_sha256: String,
    },
    /// With a failure of this kind.
    Failed {
        /// The failure's kind.
        failure_kind: String,
    },
    /// After a cancel request.
    Canceled,
    /// By force.
    Terminated,
    /// It goes on as another program.
    Continued,
    /// One of these.
    Any {
        /// Each possible one.
        of: Vec<Outcome>,
    },
}

/// What a program does, in source order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// How its run ends.
    pub outcome: Outcome,
    /// Its steps.
    pub steps: Vec<PlannedStep>,
    /// The signals to send, in this order.
    pub signals: Vec<PlannedSignal>,
    /// Its sleeps.
    pub timers: Vec<PlannedTimer>,
    /// Its queued steps.
    pub queued: Vec<PlannedQueued>,
    /// The updates to ask for, in any order.
    pub updates: Vec<PlannedUpdate>,
    /// What its search attribute is set to, in this order.
    pub upserts: Vec<i64>,
}

/// A queued step of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedQueued {
    /// The step.
    pub queued: QueuedStep,
    /// The run cannot end without it.
    pub required: bool,
}

/// An update that a program waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedUpdate {
    /// Its id, and its input as a JSON string.
    pub id: String,
    /// What is answered, as a JSON string.
    pub answer: String,
    /// The run cannot end without it.
    pub required: bool,
}

/// A step of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// Its nonce.
    pub nonce: String,
    /// Attempts that it needs at least to end.
    pub attempts_min: u32,
    /// The run cannot end without it: it stands in no race, and nobody stops the run.
    pub required: bool,
}

/// A signal of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedSignal {
    /// Its id, and its input as a JSON string.
    pub id: String,
    /// The name to send it under.
    pub name: String,
    /// The run cannot end without it.
    pub required: bool,
}

/// A sleep of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTimer {
    /// Its nonce.
    pub nonce: String,
    /// How long it takes at least.
    pub delay_us: u64,
    /// The run cannot end without it.
    pub required: bool,
}

impl Outcome {
    /// Whether a run that ended in `ended` ended as predicted.
    pub fn admits(&self, ended: &Self) -> bool {
        match self {
            Self::Any { of } => of.iter().any(|one| one.admits(ended)),
            one => one == ended,
        }
    }
}

impl Program {
    /// What has to become of it.
    pub fn predict(&self) -> Prediction {
        let mut prediction = Prediction {
            outcome: self.outcome(),
            steps: Vec::new(),
            signals: Vec::new(),
            timers: Vec::new(),
            queued: Vec::new(),
            updates: Vec::new(),
            upserts: Vec::new(),
        };
        prediction.collect(&self.ops, self.wish == Wish::Nothing);
        prediction
    }

    fn outcome(&self) -> Outcome {
        match (self.wish, self.end) {
            (Wish::Cancel, _) => Outcome::Canceled,
            (Wish::Terminate, _) => Outcome::Terminated,
            (Wish::Nothing, End::Uncaught) => Outcome::Failed { failure_kind: UNCAUGHT.to_owned() },
            (Wish::Nothing, End::Continue) => Outcome::Continued,
            (Wish::Nothing, End::Output) => {
                let mut of: Vec<Outcome> = ways(&self.ops)
                    .iter()
                    .map(|lines| Outcome::Completed { output_sha256: output_sha256(lines) })
                    .collect();
                if of.len() == 1 { of.remove(0) } else { Outcome::Any { of } }
            }
        }
    }
}

impl Prediction {
    fn collect(&mut self, ops: &[Op], required: bool) {
        for op in ops {
            match op {
                Op::Step(step) => self.steps.push(PlannedStep {
                    nonce: step.nonce.clone(),
                    attempts_min: step.fails + 1,
                    required,
                }),
                Op::Guarded { step, doubt } => {
                    // A person may end it with any attempt, and so may code that gives up.
                    let attempts_min = if *doubt == Doubt::Retry { step.fails + 1 } else { 1 };
                    let required = required && *doubt != Doubt::Fail;
                    self.steps.push(PlannedStep { nonce: step.nonce.clone(), attempts_min, required });
                }
                Op::Version { step, .. } => self.steps.push(PlannedStep {
                    nonce: step.nonce.clone(),
                    attempts_min: step.fails + 1,
                    required: false,
                }),
                // Its steps are those of a run of its own.
                Op::Child { .. } | Op::Tell(_) | Op::TellNobody { .. } => {}
                Op::Queued(queued) => {
                    let required = required && queued.doubt != Some(Doubt::Fail);
                    self.queued.push(PlannedQueued { queued: queued.clone(), required });
                }
                Op::Update { id, step } => {
                    let answer = update_answer(id, step.as_ref().map(line_of).as_deref());
                    self.updates.push(PlannedUpdate { id: id.clone(), answer, required });
                }
                Op::Upsert { n } => self.upserts.push(*n),
                Op::Sleep { nonce, us } => {
                    self.timers.push(PlannedTimer { nonce: nonce.clone(), delay_us: *us, required });
                }
                Op::Signal { name, id } => {
                    self.signals.push(PlannedSignal { id: id.clone(), name: name.clone(), required });
                }
                Op::Parallel(branches) => branches.iter().for_each(|b| self.collect(b, required)),
                Op::Race(arms) => arms.iter().for_each(|a| self.collect(a, false)),
                Op::Never => {}
            }
        }
    }
}

/// Every output that a sequence can have; none when it cannot end.
fn ways(ops: &[Op]) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = vec![Vec::new()];
    for op in ops {
        let next = ways_of(op);
        all = all
            .iter()
            .flat_map(|before| next.iter().map(move |after| [before.as_slice(), after].concat()))
            .collect();
    }
    all
}

fn ways_of(op: &Op) -> Vec<Vec<String>> {
    match op {
        Op::Step(step) => vec![vec![line_of(step)]],
        Op::Guarded { step, doubt: Doubt::Fail } => {
            vec![vec![line_of(step)], vec![failure_line(IN_DOUBT, "")]]
        }
        Op::Guarded { step, .. } => vec![vec![line_of(step)]],
        Op::Version { step, .. } => {
            vec![vec![version_line(0)], vec![version_line(1), line_of(step)]]
        }
        Op::Child { nonce, source, .. } => vec![vec![line_of_child(nonce, *source)]],
        Op::Queued(queued) if queued.doubt == Some(Doubt::Fail) => {
            vec![vec![queued.line()], vec![failure_line(IN_DOUBT, "")]]
        }
        Op::Queued(queued) => vec![vec![queued.line()]],
        Op::Tell(tell) => {
            let late = tell.late.then(|| untold_line(&tell.nonce, RUN_CLOSED));
            vec![std::iter::once(line_of_child(&tell.nonce, tell.source)).chain(late).collect()]
        }
        Op::TellNobody { nonce } => vec![vec![untold_line(nonce, RUN_NOT_FOUND)]],
        Op::Update { id, .. } => vec![vec![update_line(id)]],
        Op::Upsert { .. } => vec![Vec::new()],
        Op::Sleep { nonce, .. } => vec![vec![sleep_line(nonce)]],
        Op::Signal { id, .. } => vec![vec![signal_line(id)]],
        Op::Parallel(branches) => {
            let together: Vec<Op> = branches.concat();
            ways(&together)
        }
        Op::Race(arms) => {
            let won = |(index, arm): (usize, &Vec<Op>)| -> Vec<Vec<String>> {
                ways(arm).iter().map(|lines| [&[won_line(index)], lines.as_slice()].concat()).collect()
            };
            arms.iter().enumerate().flat_map(won).collect()
        }
        Op::Never => Vec::new(),
    }
}

fn line_of_child(nonce: &str, source: Source) -> String {
    let child = source.program();
    match (child.wish, child.end) {
        (Wish::Cancel, _) => no_child_line(nonce, CANCELED),
        (_, End::Uncaught) => no_child_line(nonce, UNCAUGHT),
        _ => child_line(nonce, &ways(&child.ops).concat()),
    }
}

fn line_of(step: &Step) -> String {
    if step.refused { failure_line(REFUSED, &step.nonce) } else { step_line(&step.result()) }
}

/// SHA-256, in hex, of the lines as a JSON array of strings: the JSON text of the run's result.
pub fn output_sha256(lines: &[String]) -> String {
    let text = serde_json::Value::from(lines.to_vec()).to_string();
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
