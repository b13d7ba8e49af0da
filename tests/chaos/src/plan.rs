//! What a client has to do for one workflow, worked out before it starts: its program, or the programs of its chain.

use std::collections::{BTreeMap, VecDeque};

use everstep_checker::format::{Expected, ExpectedOutcome, ExpectedStep, ExpectedTimer, OpKind};
use everstep_tests::program::{
    Build, Code, Doubt, End, Op, Outcome, Prediction, Profile, Program, REFUSED, Source, Step, Wish,
};
use serde_json::json;

use crate::dice::Dice;
use crate::requests::Said;

/// An update that a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its id, and its input.
    pub id: String,
    /// What the code answers; `None` for one to which it does not agree.
    pub answer: Option<String>,
    /// The run does not end without it.
    pub awaited: bool,
}

/// What a client does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The first program.
    pub source: Source,
    /// How its run is to end, if not by itself.
    pub wish: Wish,
    /// Other runs follow the first one: it is only known by its workflow id.
    pub is_chain: bool,
    /// The op that starts it.
    pub first: OpKind,
    /// Still to be sent, in order: name and id.
    pub signals: VecDeque<(String, String)>,
    /// Still to be asked for.
    pub updates: VecDeque<Asked>,
    /// Some steps wait for a person when they are in doubt.
    pub asks_people: bool,
    /// What became of each step in doubt, by its name. Runs of a chain have steps of the same names.
    steps: BTreeMap<String, Said>,
    /// What has to become of it.
    pub expected: Expected,
}

impl Plan {
    /// A plan for the workflow with this id.
    pub fn draw(workflow_id: &str, programs: &mut Dice) -> Self {
        loop {
            let source = Source { seed: programs.number(), profile: Profile::Chaos, generation: 0 };
            if let Some(plan) = Self::of(workflow_id, chain(source), programs) {
                return plan;
            }
        }
    }

    /// `None` for programs that need other workers than there are, or a client that knows when one follows another.
    fn of(workflow_id: &str, programs: Vec<Program>, dice: &mut Dice) -> Option<Self> {
        if programs.iter().any(|program| program.code != Code::Same) {
            return None;
        }
        let predictions: Vec<Prediction> = programs.iter().map(Program::predict).collect();
        let (first, last) = (programs.first()?, programs.last()?);
        // An update that comes too early is carried out by the program before the one that waits for it.
        if predictions.iter().skip(1).any(|prediction| !prediction.updates.is_empty()) {
            return None;
        }
        let signals = predictions.iter().flat_map(|prediction| &prediction.signals);
        let updates = predictions.iter().flat_map(|prediction| &prediction.updates);
        let is_chain = programs.len() > 1;
        let mut plan = Self {
            source: first.source,
            wish: first.wish,
            is_chain,
            first: OpKind::Start,
            signals: signals.map(|signal| (signal.name.clone(), signal.id.clone())).collect(),
            updates: updates
                .map(|update| Asked {
                    id: update.id.clone(),
                    answer: Some(update.answer.clone()),
                    awaited: true,
                })
                .collect(),
            asks_people: programs.iter().any(|program| asks_people(&program.ops)),
            steps: BTreeMap::new(),
            expected: expected(workflow_id, last, predictions.last()?),
        };
        plan.expected.signals = plan.signals.iter().map(|(_, id)| id.clone()).collect();
        if !is_chain {
            each_step(&first.ops, &mut |step| {
                plan.steps.insert(first.step_name(step, Build::A), said(step));
            });
        }
        plan.begin(workflow_id, dice);
        Some(plan)
    }

    /// How it starts, and what else its code is asked.
    fn begin(&mut self, workflow_id: &str, dice: &mut Dice) {
        self.first = match dice.below(4) {
            0 if !self.signals.is_empty() => OpKind::SignalWithStart,
            1 | 2 if !self.updates.is_empty() => OpKind::UpdateWithStart,
            _ => OpKind::Start,
        };
        if dice.percent(15) {
            self.updates.push_back(Asked { id: format!("no-{workflow_id}"), answer: None, awaited: false });
        }
        if dice.percent(10) {
            let id = format!("more-{workflow_id}");
            self.updates.push_back(Asked { id: id.clone(), answer: Some(id), awaited: false });
        }
    }

    /// What is said about a step of this name; by turns, nothing but that it should be done again.
    #[must_use]
    pub fn says(&self, name: &str, turn: u32) -> Said {
        let said = self.steps.get(name).filter(|_| turn % 2 == 1);
        said.cloned().unwrap_or(Said::Again)
    }
}

/// The programs of a workflow, each of which goes on as the next.
fn chain(first: Source) -> Vec<Program> {
    let mut programs = vec![first.program()];
    while let Some(last) = programs.last().filter(|last| last.end == End::Continue) {
        let next = last.source.next().program();
        programs.push(next);
    }
    programs
}

fn each_step<'a>(ops: &'a [Op], see: &mut impl FnMut(&'a Step)) {
    for op in ops {
        match op {
            Op::Step(step) | Op::Guarded { step, .. } | Op::Version { step, .. } => see(step),
            Op::Parallel(parts) | Op::Race(parts) => parts.iter().for_each(|part| each_step(part, see)),
            _ => {}
        }
    }
}

fn asks_people(ops: &[Op]) -> bool {
    ops.iter().any(|op| match op {
        Op::Guarded { doubt, .. } => *doubt == Doubt::AskHuman,
        Op::Queued(queued) => queued.doubt == Some(Doubt::AskHuman),
        Op::Parallel(parts) | Op::Race(parts) => parts.iter().any(|part| asks_people(part)),
        _ => false,
    })
}

/// How a step ends, whoever says it.
fn said(step: &Step) -> Said {
    if step.refused {
        return Said::Failed(REFUSED.to_owned(), step.nonce.clone());
    }
    Said::Completed(json!(step.result()))
}

/// In the checker's words.
pub(crate) fn expected(workflow_id: &str, program: &Program, prediction: &Prediction) -> Expected {
    let steps = prediction.steps.iter().filter(|step| step.required);
    let steps = steps.map(|step| ExpectedStep { nonce: step.nonce.clone(), attempts_min: step.attempts_min });
    let queued = prediction.queued.iter().filter(|planned| planned.required && planned.queued.is_served());
    let queued = queued.map(|planned| ExpectedStep {
        nonce: planned.queued.step.nonce.clone(),
        attempts_min: planned.queued.attempts_min(),
    });
    let timers = prediction.timers.iter().filter(|timer| timer.required);
    Expected {
        workflow_id: workflow_id.to_owned(),
        program_seed: program.source.seed,
        outcome: outcome(&prediction.outcome),
        steps: steps.chain(queued).collect(),
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
        // What is expected is how a chain ends.
        Outcome::Continued => ExpectedOutcome::Any { of: Vec::new() },
        Outcome::Any { of } => ExpectedOutcome::Any { of: of.iter().map(outcome).collect() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Stream;

    #[test]
    fn plans_have_everything_that_a_client_can_do() {
        let mut dice = Dice::new(5, Stream::Programs, 1);
        let plans: Vec<Plan> = (0..600).map(|n| Plan::draw(&format!("w{n}"), &mut dice)).collect();
        let count = |is: fn(&Plan) -> bool| plans.iter().filter(|plan| is(plan)).count();
        assert!(count(|p| p.is_chain) > 20);
        assert!(count(|p| p.asks_people) > 20);
        assert!(count(|p| p.first == OpKind::SignalWithStart) > 20);
        assert!(count(|p| p.first == OpKind::UpdateWithStart) > 10);
        assert!(count(|p| p.updates.iter().any(|asked| asked.answer.is_none())) > 20);
        assert!(count(|p| p.wish != Wish::Nothing) > 20);
        let never = |p: &Plan| matches!(&p.expected.outcome, ExpectedOutcome::Any { of } if of.is_empty());
        assert!(!plans.iter().any(never), "each chain comes to an end");
        let again = plans.iter().find(|plan| !plan.steps.is_empty()).map(|plan| {
            let name = plan.steps.keys().next().cloned().unwrap_or_default();
            (plan.says(&name, 2), plan.says(&name, 1) == Said::Again)
        });
        assert_eq!(again, Some((Said::Again, false)));
    }
}
