//! What goes wrong, drawn from a seed; or nothing.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const MILLIS: u64 = 1_000;
const SECONDS: u64 = 1_000_000;
const HOURS: u64 = 3_600 * SECONDS;
/// Workers that die in a row before one of them records something. The product blocks a run as poison after more.
const DEATHS_IN_A_ROW: u32 = 3;
/// Workers that die by chance, so that every run comes to its end.
const DEATHS_MAX: u32 = 8;
const JUMPS_MAX: u32 = 3;

/// How a worker goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// The process ends: what it has not sent is gone.
    Killed,
    /// It hangs, or is cut off, until its lease is over: what it had begun happens all the same.
    Stalled,
}

/// The plan of one seed, and what came of it.
#[derive(Debug)]
pub(super) struct Faults {
    /// `None` for a world in which nothing goes wrong and nothing takes time.
    dice: Option<Dice>,
    /// Places passed so far at which a worker could have died.
    points: u64,
    deaths: u32,
    in_a_row: u32,
    /// What happened, for people.
    story: Vec<String>,
}

#[derive(Debug)]
struct Dice {
    rng: ChaCha8Rng,
    /// The place at which a worker dies for sure.
    sure: u64,
    /// Chances in a thousand.
    die: u64,
    slow: u64,
    again: u64,
    jump: u64,
    jumps: u32,
    parks: bool,
    shows: bool,
}

impl Faults {
    pub(super) fn none() -> Self {
        Self { dice: None, points: 0, deaths: 0, in_a_row: 0, story: Vec::new() }
    }

    /// The plan of `seed` for a run that passes so many places when it is left alone. Every place has its seed
    /// among any `points` seeds in a row; one seed in four has that one death and nothing else.
    pub(super) fn drawn(seed: u64, points: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let mut dice = Dice {
            rng,
            sure: seed % points.max(1),
            die: 0,
            slow: 0,
            again: 0,
            jump: 0,
            jumps: 0,
            parks: false,
            shows: false,
        };
        dice.parks = dice.below(2) == 0;
        dice.shows = dice.below(2) == 0;
        if dice.below(4) > 0 {
            dice.die = dice.below(80);
            dice.slow = dice.below(200);
            dice.again = dice.below(300);
            dice.jump = dice.below(20);
        }
        Self { dice: Some(dice), ..Self::none() }
    }

    /// Places passed so far.
    pub(super) fn points(&self) -> u64 {
        self.points
    }

    pub(super) fn deaths(&self) -> u32 {
        self.deaths
    }

    pub(super) fn story(&self) -> &[String] {
        &self.story
    }

    pub(super) fn tell(&mut self, line: String) {
        self.story.push(line);
    }

    /// A place at which a worker can die. What happens there, if something does.
    pub(super) fn death(&mut self) -> Option<Death> {
        let point = self.points;
        self.points += 1;
        let dice = self.dice.as_mut()?;
        let sure = point == dice.sure;
        let by_chance = dice.hit(dice.die) && self.deaths < DEATHS_MAX;
        if (!sure && !by_chance) || self.in_a_row >= DEATHS_IN_A_ROW {
            return None;
        }
        self.deaths += 1;
        self.in_a_row += 1;
        Some(if dice.below(3) == 0 { Death::Stalled } else { Death::Killed })
    }

    /// A worker recorded something.
    pub(super) fn progress(&mut self) {
        self.in_a_row = 0;
    }

    /// Time that something takes on its way, in microseconds.
    pub(super) fn delay(&mut self) -> u64 {
        let Some(dice) = &mut self.dice else { return 0 };
        if dice.hit(dice.slow) { dice.below(2 * SECONDS) } else { 50 + dice.below(5 * MILLIS) }
    }

    /// Time until a dead worker is found to be dead.
    pub(super) fn lease(&mut self) -> u64 {
        self.dice.as_mut().map_or(0, |dice| dice.below(30 * SECONDS))
    }

    /// Time until somebody looks at what waits for a person; `None` where the test is that person.
    pub(super) fn person(&mut self) -> Option<u64> {
        self.dice.as_mut().map(|dice| dice.below(HOURS))
    }

    /// How much later a message comes a second time; `None` when it does not.
    pub(super) fn again(&mut self) -> Option<u64> {
        let dice = self.dice.as_mut()?;
        dice.hit(dice.again).then(|| dice.below(3 * SECONDS))
    }

    /// Whether an answer is lost here.
    pub(super) fn hiccup(&mut self) -> bool {
        self.dice.as_mut().is_some_and(|dice| dice.hit(dice.again))
    }

    /// By how many microseconds the clock of the database jumps now.
    pub(super) fn jump(&mut self) -> Option<i64> {
        let dice = self.dice.as_mut()?;
        if dice.jumps >= JUMPS_MAX || !dice.hit(dice.jump) {
            return None;
        }
        dice.jumps += 1;
        let far = [2 * SECONDS, 60 * SECONDS, HOURS][dice.below(3) as usize];
        let by = dice.below(far).cast_signed();
        // Back is rarer, and never as far: clocks are stepped back by what they had gained.
        Some(if dice.below(3) == 0 { -(by / 60) } else { by })
    }

    /// One of so many, all of which would do: the first where nothing goes wrong.
    pub(super) fn pick(&mut self, of: usize) -> usize {
        match &mut self.dice {
            Some(dice) if of > 1 => usize::try_from(dice.below(of as u64)).unwrap_or(0),
            _ => 0,
        }
    }

    /// Runs that only wait are let go of, so that each wake is a replay.
    pub(super) fn parks(&self) -> bool {
        self.dice.as_ref().is_some_and(|dice| dice.parks)
    }

    /// Attempts show as started before they end.
    pub(super) fn shows(&self) -> bool {
        self.dice.as_ref().is_some_and(|dice| dice.shows)
    }
}

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.rng.next_u64() % limit.max(1)
    }

    fn hit(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }
}
