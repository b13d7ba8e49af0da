//! Generated workflows, and what a worker that runs one has to do next.
//!
//! A program is interpreted from the history alone: which steps to run, which timers to set, whether it
//! is done. That is what workflow code does under replay, without the code.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{Event, EventBody, OpId, TimerKey, TimerKind, Timestamp};

use crate::faults::Dice;

/// One operation of a workflow, in source order.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Step { fails: u32, slow_us: u64 },
    Sleep { us: u64 },
    Signal,
    Parallel(Vec<(u32, u64)>),
}

/// What the workflow wants now.
#[derive(Debug, Default)]
pub(crate) struct Wants {
    /// Attempts to run: step, attempt, fails, how long, not before.
    pub(crate) attempts: Vec<(OpId, u32, bool, u64, Timestamp)>,
    /// Timers to start.
    pub(crate) timers: Vec<(OpId, u64)>,
    pub(crate) done: bool,
}

#[derive(Default)]
struct Seen {
    ended: BTreeSet<OpId>,
    failures: BTreeMap<OpId, (u32, Timestamp)>,
    attempts: BTreeMap<OpId, u32>,
    timers: BTreeSet<OpId>,
    fired: BTreeSet<OpId>,
    signals: usize,
}

pub(crate) fn generate(seed: u64) -> Vec<Op> {
    let mut dice = Dice::new(seed);
    let ops = 1 + dice.below(6);
    (0..ops)
        .map(|_| match dice.below(8) {
            0..=3 => Op::Step { fails: fails(&mut dice), slow_us: slow(&mut dice) },
            4 => Op::Sleep { us: dice.below(8_000_000) },
            5 => Op::Signal,
            _ => Op::Parallel((0..2 + dice.below(3)).map(|_| (fails(&mut dice), slow(&mut dice))).collect()),
        })
        .collect()
}

fn fails(dice: &mut Dice) -> u32 {
    if dice.chance(0.2) { 1 + dice.below(2) as u32 } else { 0 }
}

fn slow(dice: &mut Dice) -> u64 {
    if dice.chance(0.1) { dice.below(6_000_000) } else { dice.below(5_000) }
}

/// Signals that a program waits for.
pub(crate) fn signals(program: &[Op]) -> usize {
    program.iter().filter(|op| matches!(op, Op::Signal)).count()
}

fn look(history: &[Event]) -> Seen {
    let mut seen = Seen::default();
    for event in history {
        match &event.body {
            EventBody::StepStarted { step, attempt, .. } => {
                seen.attempts.insert(*step, *attempt);
            }
            EventBody::StepCompleted { step, .. } => {
                seen.ended.insert(*step);
            }
            EventBody::StepFailed { step, attempt, retry_at, .. } => {
                let Some(due) = *retry_at else { panic!("simulated steps are retried for ever") };
                let failures = seen.failures.get(step).map_or(0, |f| f.0) + 1;
                seen.failures.insert(*step, (failures, due));
                seen.attempts.insert(*step, *attempt);
            }
            EventBody::TimerStarted { timer, .. } => {
                seen.timers.insert(*timer);
            }
            EventBody::TimerFired { timer: TimerKey { kind: TimerKind::Timer, id } } => {
                seen.fired.insert(OpId(*id));
            }
            EventBody::SignalReceived { .. } => seen.signals += 1,
            _ => {}
        }
    }
    seen
}

/// What `program` wants after `history`.
pub(crate) fn wants(program: &[Op], history: &[Event]) -> Wants {
    let seen = look(history);
    let mut wants = Wants::default();
    let (mut next, mut signals) = (1, seen.signals);
    for op in program {
        let finished = match op {
            Op::Step { fails, slow_us } => steps(&seen, &mut wants, &mut next, &[(*fails, *slow_us)]),
            Op::Parallel(branches) => steps(&seen, &mut wants, &mut next, branches),
            Op::Sleep { us } => {
                let id = OpId(next);
                next += 1;
                if !seen.timers.contains(&id) {
                    wants.timers.push((id, *us));
                }
                seen.fired.contains(&id)
            }
            Op::Signal => {
                let got = signals > 0;
                signals = signals.saturating_sub(1);
                got
            }
        };
        if !finished {
            return wants;
        }
    }
    wants.done = true;
    wants
}

fn steps(seen: &Seen, wants: &mut Wants, next: &mut u32, branches: &[(u32, u64)]) -> bool {
    let mut finished = true;
    for (fails, slow_us) in branches {
        let id = OpId(*next);
        *next += 1;
        if seen.ended.contains(&id) {
            continue;
        }
        finished = false;
        let (failures, due) = seen.failures.get(&id).copied().unwrap_or_default();
        let attempt = seen.attempts.get(&id).copied().unwrap_or(0) + 1;
        wants.attempts.push((id, attempt, failures < *fails, *slow_us, due));
    }
    finished
}
