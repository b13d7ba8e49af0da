//! Programs from seeds.

use super::{Code, Dice, Doubt, End, Op, Profile, Program, SIGNAL_NAME, Source, Step, Wish};

/// Races that may go either way; each doubles the outcomes.
const OPEN_RACES_MAX: u32 = 2;
/// Programs that may follow the first one.
const CONTINUES_MAX: u8 = 2;
/// Parallels and races within one another.
const DEPTH_MAX: u32 = 2;

struct Generator {
    dice: Dice,
    source: Source,
    /// Nonces given so far.
    nonces: u32,
    open_races: u32,
}

/// What the numbers of a profile are.
struct Scale {
    ops: u64,
    sleep_us: u64,
    quick_us: u64,
    slow_us: u64,
    /// Results this large, in a share of the steps.
    huge: (usize, f64),
}

impl Profile {
    fn scale(self) -> Scale {
        match self {
            Self::Sim => Scale {
                ops: 6,
                sleep_us: 8_000_000,
                quick_us: 5_000,
                slow_us: 6_000_000,
                huge: (256 * 1024, 0.002),
            },
            Self::Chaos => Scale {
                ops: 7,
                sleep_us: 800_000,
                quick_us: 5_000,
                slow_us: 300_000,
                huge: (256 * 1024, 0.02),
            },
        }
    }
}

pub(super) fn program(source: Source) -> Program {
    // The seeds of a case are often neighbours of each other and of the world's own.
    let dice = Dice::new(source.seed ^ 0x0070_726f_6772_616d);
    let mut generator = Generator { dice, source, nonces: 0, open_races: 0 };
    if source.is_child() {
        return generator.child_program();
    }
    let count = 1 + generator.dice.below(source.profile.scale().ops);
    let mut ops = generator.ops(count, 0);
    generator.add_later_kinds(&mut ops);
    let mut end = if generator.dice.chance(0.1) { End::Uncaught } else { End::Output };
    let mut wish = match generator.dice.below(12) {
        0 => Wish::Cancel,
        1 => Wish::Terminate,
        _ => Wish::Nothing,
    };
    if source.generation > 0 {
        // Its client wished nothing of the first program.
        wish = Wish::Nothing;
    }
    // Dice of their own, so that what was drawn before there were chains stays what it was.
    let goes_on = Dice::new(source.seed ^ 0x6368_6169_6e73).chance(0.3);
    let may = source.profile == Profile::Sim && source.generation < CONTINUES_MAX;
    if may && goes_on && end == End::Output && wish == Wish::Nothing {
        end = End::Continue;
    }
    let code = generator.code(&ops);
    Program { source, ops, end, wish, code }
}

impl Generator {
    fn nonce(&mut self) -> String {
        self.nonces += 1;
        format!("{:016x}.{:03}", self.source.seed, self.nonces)
    }

    fn ops(&mut self, count: u64, depth: u32) -> Vec<Op> {
        (0..count).map(|_| self.op(depth)).collect()
    }

    fn op(&mut self, depth: u32) -> Op {
        match self.dice.below(16) {
            0..=7 => Op::Step(self.step()),
            8..=9 => self.sleep(),
            10..=11 => self.signal(depth),
            12..=13 if depth < DEPTH_MAX => {
                let branches = 2 + self.dice.below(3);
                Op::Parallel((0..branches).map(|_| self.branch(depth)).collect())
            }
            14..=15 if depth < DEPTH_MAX => self.race(depth),
            _ => Op::Step(self.step()),
        }
    }

    fn branch(&mut self, depth: u32) -> Vec<Op> {
        let count = 1 + self.dice.below(3);
        self.ops(count, depth + 1)
    }

    /// Mostly one arm can win; sometimes all can, and the outcome is one of a set.
    fn race(&mut self, depth: u32) -> Op {
        let open = self.open_races < OPEN_RACES_MAX && self.dice.chance(0.3);
        let arms = if open { 2 } else { 2 + self.dice.below(2) };
        if open {
            self.open_races += 1;
        }
        let winner = self.dice.below(arms);
        let mut all = Vec::new();
        for index in 0..arms {
            // What has several outcomes is not multiplied again by standing in an arm.
            let kept = std::mem::replace(&mut self.open_races, OPEN_RACES_MAX);
            let mut arm = self.branch(depth);
            self.open_races = kept;
            if !open && index != winner {
                arm.push(Op::Never);
            }
            all.push(arm);
        }
        Op::Race(all)
    }

    fn step(&mut self) -> Step {
        let scale = self.source.profile.scale();
        let fails = if self.dice.chance(0.2) { 1 + self.dice.below(2) as u32 } else { 0 };
        let slow_us = if self.dice.chance(0.1) {
            self.dice.below(scale.slow_us)
        } else {
            self.dice.below(scale.quick_us)
        };
        let (huge, share) = scale.huge;
        let bytes = if self.dice.chance(share) {
            huge / 2 + self.dice.below(huge as u64 / 2) as usize
        } else if self.dice.chance(0.05) {
            self.dice.below(8_192) as usize
        } else {
            self.dice.below(64) as usize
        };
        Step { nonce: self.nonce(), fails, slow_us, bytes, refused: self.dice.chance(0.06) }
    }

    fn sleep(&mut self) -> Op {
        let us = self.dice.below(self.source.profile.scale().sleep_us);
        Op::Sleep { nonce: self.nonce(), us }
    }

    fn signal(&mut self, depth: u32) -> Op {
        let id = format!("signal-{}", self.nonce());
        let name = if depth == 0 { SIGNAL_NAME.to_owned() } else { id.clone() };
        Op::Signal { name, id }
    }

    /// Kinds that came when there were seeds already: what those did before stays as it was.
    fn add_later_kinds(&mut self, ops: &mut Vec<Op>) {
        if self.source.profile != Profile::Sim {
            return;
        }
        let mut dice = Dice::new(self.source.seed ^ 0x6c61_7465_7200_0000);
        std::mem::swap(&mut dice, &mut self.dice);
        self.guard(ops);
        if self.dice.chance(0.15) {
            let step = self.step();
            let at = self.dice.below(ops.len() as u64 + 1) as usize;
            ops.insert(at, Op::Version { change: "change".to_owned(), step });
        }
        let mut more = Dice::new(self.source.seed ^ 0x6368_696c_6472_656e);
        std::mem::swap(&mut more, &mut self.dice);
        if self.dice.chance(0.35) {
            for _ in 0..1 + self.dice.below(3) {
                self.add_child(ops);
            }
        }
        std::mem::swap(&mut more, &mut self.dice);
        std::mem::swap(&mut dice, &mut self.dice);
    }

    /// A child somewhere at the top, or as one more branch beside others.
    fn add_child(&mut self, ops: &mut Vec<Op>) {
        let nonce = self.nonce();
        let source = self.source.child(self.nonces);
        let child = Op::Child { nonce, source, abandoned: self.dice.chance(0.2) };
        let at = self.dice.below(ops.len() as u64 + 1) as usize;
        match ops.get_mut(at) {
            Some(Op::Parallel(branches)) => branches.push(vec![child]),
            _ => ops.insert(at, child),
        }
    }

    /// A few steps and sleeps that end in one way: nobody sends a child signals, or wishes anything of it.
    fn child_program(mut self) -> Program {
        let count = 1 + self.dice.below(3);
        let ops = (0..count)
            .map(|_| if self.dice.chance(0.7) { Op::Step(self.step()) } else { self.sleep() })
            .collect();
        let end = if self.dice.chance(0.1) { End::Uncaught } else { End::Output };
        Program { source: self.source, ops, end, wish: Wish::Nothing, code: Code::Same }
    }

    /// Some steps become guarded ones.
    fn guard(&mut self, ops: &mut [Op]) {
        for op in ops {
            match op {
                Op::Step(step) if self.dice.chance(0.15) => {
                    let doubt = match self.dice.below(4) {
                        // What may end otherwise is no more than what a race may be.
                        0 if self.open_races < OPEN_RACES_MAX => {
                            self.open_races += 1;
                            Doubt::Fail
                        }
                        0 | 1 => Doubt::AskHuman,
                        _ => Doubt::Retry,
                    };
                    *op = Op::Guarded { step: step.clone(), doubt };
                }
                Op::Parallel(parts) => parts.iter_mut().for_each(|part| self.guard(part)),
                // Within a race, a doubt that is given up would multiply the ways of its arm.
                _ => {}
            }
        }
    }

    fn code(&mut self, ops: &[Op]) -> Code {
        let named = ops.iter().filter_map(|op| match op {
            Op::Step(step) => Some(step.nonce.clone()),
            _ => None,
        });
        let named: Vec<String> = named.collect();
        let versioned = ops.iter().any(|op| matches!(op, Op::Version { .. }));
        match self.dice.below(10) {
            // Either build has to be able to end a run that the other one has bound to its code.
            _ if versioned => Code::Same,
            0 if !named.is_empty() => {
                let at = self.dice.below(named.len() as u64) as usize;
                Code::Renamed { nonce: named[at].clone() }
            }
            1 => Code::Poisoned { before: self.dice.below(ops.len() as u64 + 1) as usize },
            _ => Code::Same,
        }
    }
}
