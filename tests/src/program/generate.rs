//! Programs from seeds.

use super::{
    By, Code, Course, Dice, Doubt, End, Op, Profile, Program, QueuedStep, SIGNAL_NAME, Source, Step, Tell,
    Wish,
};

/// Races that may go either way; each doubles the outcomes.
const OPEN_RACES_MAX: u32 = 2;
/// Programs that may follow the first one.
const CONTINUES_MAX: u8 = 2;
/// Parallels and races within one another.
const DEPTH_MAX: u32 = 2;
/// Seeds of which one has a fan-out.
const WIDE_EVERY: u64 = 512;
/// The fewest children of a fan-out: more than a node begins at one time.
const WIDE_MIN: u64 = 65;

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
    shares: Shares,
}

/// Of what share of the programs, or of the steps where it is said, each kind of op is part.
struct Shares {
    /// Of the steps.
    guarded: f64,
    version: f64,
    children: f64,
    continued: f64,
    /// Of the steps.
    queued: f64,
    told: f64,
    untold: f64,
    updates: f64,
    upserts: f64,
}

const ALL_KINDS: Shares = Shares {
    guarded: 0.15,
    version: 0.15,
    children: 0.35,
    continued: 0.3,
    queued: 0.15,
    told: 0.12,
    untold: 0.05,
    updates: 0.2,
    upserts: 0.2,
};

/// In real time, what others do for a program costs more than its own steps.
const SOME_OF_ALL: Shares = Shares {
    guarded: 0.12,
    version: 0.1,
    children: 0.15,
    continued: 0.15,
    queued: 0.08,
    told: 0.06,
    untold: 0.03,
    updates: 0.15,
    upserts: 0.1,
};

impl Profile {
    fn scale(self) -> Scale {
        match self {
            Self::Sim => Scale {
                ops: 6,
                sleep_us: 8_000_000,
                quick_us: 5_000,
                slow_us: 6_000_000,
                huge: (256 * 1024, 0.002),
                shares: ALL_KINDS,
            },
            Self::Chaos => Scale {
                ops: 7,
                sleep_us: 800_000,
                quick_us: 5_000,
                slow_us: 300_000,
                huge: (256 * 1024, 0.02),
                shares: SOME_OF_ALL,
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
    let share = source.profile.scale().shares.continued;
    let goes_on = Dice::new(source.seed ^ 0x6368_6169_6e73).chance(share);
    let may = source.generation < CONTINUES_MAX;
    if may && goes_on && end == End::Output && wish == Wish::Nothing {
        end = End::Continue;
    }
    let code = generator.code(&ops);
    Program { source, ops, end, wish, code }
}

impl Source {
    /// A seed whose program begins more children than a node begins at one time.
    pub fn is_wide(self) -> bool {
        self.profile == Profile::Sim && self.generation == 0 && self.seed.is_multiple_of(WIDE_EVERY)
    }

    /// The wide seed next to this one.
    #[must_use]
    pub fn widened(self) -> Self {
        Self { seed: self.seed - self.seed % WIDE_EVERY, ..self }
    }
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
        let shares = self.source.profile.scale().shares;
        self.with_dice(0x6c61_7465_7200_0000, |own| {
            own.guard(ops, shares.guarded);
            if own.dice.chance(shares.version) {
                let step = own.step();
                let at = own.dice.below(ops.len() as u64 + 1) as usize;
                ops.insert(at, Op::Version { change: "change".to_owned(), step });
            }
        });
        self.with_dice(0x6368_696c_6472_656e, |own| {
            if own.dice.chance(shares.children) {
                for _ in 0..1 + own.dice.below(3) {
                    own.add_child(ops);
                }
            }
        });
        self.with_dice(0x6f74_6865_7273_0000, |own| own.add_others(ops, &shares));
        if self.source.is_wide() {
            let mut children = Vec::new();
            for _ in 0..WIDE_MIN + self.dice.below(24) {
                children.push(vec![self.child()]);
            }
            ops.push(Op::Parallel(children));
        }
    }

    /// With dice of their own.
    fn with_dice(&mut self, salt: u64, draw: impl FnOnce(&mut Self)) {
        let mut dice = Dice::new(self.source.seed ^ salt);
        std::mem::swap(&mut dice, &mut self.dice);
        draw(self);
        std::mem::swap(&mut dice, &mut self.dice);
    }

    /// What others do for the program, or ask of it.
    fn add_others(&mut self, ops: &mut Vec<Op>, shares: &Shares) {
        self.queue(ops, shares.queued, true);
        // Programs of a few inline steps would have none.
        if self.dice.chance(shares.queued) {
            let op = Op::Queued(self.queued(true));
            self.add(ops, op);
        }
        if self.dice.chance(shares.told) {
            let op = self.tell();
            self.add(ops, op);
        }
        if self.dice.chance(shares.untold) {
            let op = Op::TellNobody { nonce: self.nonce() };
            self.add(ops, op);
        }
        if self.dice.chance(shares.updates) {
            for _ in 0..1 + self.dice.below(2) {
                let id = format!("update-{}", self.nonce());
                let step = self.dice.chance(0.6).then(|| self.step());
                self.add(ops, Op::Update { id, step });
            }
        }
        if self.dice.chance(shares.upserts) {
            for _ in 0..1 + self.dice.below(3) {
                let at = self.dice.below(ops.len() as u64 + 1) as usize;
                ops.insert(at, Op::Upsert { n: self.dice.below(1_000) as i64 });
            }
        }
    }

    /// Some steps become queued ones.
    fn queue(&mut self, ops: &mut [Op], share: f64, once: bool) {
        for op in ops {
            match op {
                Op::Step(_) if self.dice.chance(share) => *op = Op::Queued(self.queued(once)),
                Op::Parallel(parts) => parts.iter_mut().for_each(|part| self.queue(part, share, once)),
                // Within a race, a doubt that is given up would multiply the ways of its arm.
                Op::Race(arms) => arms.iter_mut().for_each(|arm| self.queue(arm, share, false)),
                _ => {}
            }
        }
    }

    /// `open`: it may end in two ways.
    fn queued(&mut self, open: bool) -> QueuedStep {
        let mut step = self.step();
        let course = match self.dice.below(12) {
            0 => Course::Silent,
            1 => Course::Faint,
            2 => Course::Exhausted { attempts: 1 + self.dice.below(3) as u32 },
            3 => Course::Unserved { in_all: self.dice.chance(0.5) },
            _ => Course::Said,
        };
        match course {
            Course::Said | Course::Unserved { .. } => {}
            // Its attempts have to be in time.
            Course::Silent | Course::Faint => {
                step.fails = 1;
                step.slow_us = step.slow_us.min(self.source.profile.scale().quick_us);
            }
            Course::Exhausted { .. } => step.fails = u32::MAX,
        }
        let doubt = match (course, self.dice.below(6)) {
            (Course::Said, 0) if open && self.open_races < OPEN_RACES_MAX => {
                self.open_races += 1;
                Some(Doubt::Fail)
            }
            (Course::Said | Course::Silent | Course::Faint, 1) => Some(Doubt::AskHuman),
            (_, 2) => Some(Doubt::Retry),
            _ => None,
        };
        let beats = matches!(course, Course::Faint) || self.dice.chance(0.4);
        let priority = 1 + self.dice.below(5) as u8;
        QueuedStep { step, course, beats, doubt, priority }
    }

    fn tell(&mut self) -> Op {
        let nonce = self.nonce();
        let source = self.source.told_child(self.nonces, self.dice.chance(0.3));
        let by = if self.dice.chance(0.5) { By::Run } else { By::Workflow };
        Op::Tell(Tell { nonce, source, by, late: self.dice.chance(0.3) })
    }

    fn child(&mut self) -> Op {
        let nonce = self.nonce();
        let source = self.source.child(self.nonces);
        Op::Child { nonce, source, abandoned: self.dice.chance(0.2) }
    }

    /// An op somewhere at the top, or as one more branch beside others.
    fn add(&mut self, ops: &mut Vec<Op>, op: Op) {
        let at = self.dice.below(ops.len() as u64 + 1) as usize;
        match ops.get_mut(at) {
            Some(Op::Parallel(branches)) => branches.push(vec![op]),
            _ => ops.insert(at, op),
        }
    }

    fn add_child(&mut self, ops: &mut Vec<Op>) {
        let child = self.child();
        self.add(ops, child);
    }

    /// A few steps and sleeps that end in one way. Nobody but its parent sends a child signals, or stops it.
    fn child_program(mut self) -> Program {
        let count = 1 + self.dice.below(3);
        let mut ops: Vec<Op> = (0..count)
            .map(|_| if self.dice.chance(0.7) { Op::Step(self.step()) } else { self.sleep() })
            .collect();
        if self.source.waits_for_signals() {
            for _ in 0..1 + self.dice.below(3) {
                let signal = self.signal(0);
                let at = self.dice.below(ops.len() as u64 + 1) as usize;
                ops.insert(at, signal);
            }
        }
        let end = if self.dice.chance(0.1) { End::Uncaught } else { End::Output };
        let wish = if self.source.waits_for_stop() { Wish::Cancel } else { Wish::Nothing };
        Program { source: self.source, ops, end, wish, code: Code::Same }
    }

    /// Some steps become guarded ones.
    fn guard(&mut self, ops: &mut [Op], share: f64) {
        for op in ops {
            match op {
                Op::Step(step) if self.dice.chance(share) => {
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
                Op::Parallel(parts) => parts.iter_mut().for_each(|part| self.guard(part, share)),
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
