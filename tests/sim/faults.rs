//! Seeded chance.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of choices that a seed repeats.
#[derive(Debug)]
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// 0 to n - 1.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0.next_u64() % n.max(1)
    }

    pub(crate) fn chance(&mut self, p: f64) -> bool {
        (self.0.next_u64() >> 11) as f64 / ((1u64 << 53) as f64) < p
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// How often things go wrong; drawn anew for each seed, all zero after the last fault heals.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    /// The append is done, its reply is lost.
    pub(crate) reply_lost: f64,
    /// Nothing was done, and nobody knows.
    pub(crate) request_lost: f64,
    /// The reply is lost, and the append happens a while later.
    pub(crate) commit_late: f64,
    /// Nothing was done, and the store says so.
    pub(crate) unavailable: f64,
    pub(crate) hint_lost: f64,
    pub(crate) hint_doubled: f64,
    pub(crate) hint_late: f64,
    pub(crate) link_cut: f64,
    /// A node dies between two of its outputs.
    pub(crate) node_dies: f64,
    pub(crate) worker_dies: f64,
    pub(crate) worker_stalls: f64,
}

impl Rates {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let mut rate =
            |max: f64| if dice.chance(0.5) { max * dice.below(1_000) as f64 / 1_000.0 } else { 0.0 };
        Self {
            reply_lost: rate(0.05),
            request_lost: rate(0.05),
            commit_late: rate(0.05),
            unavailable: rate(0.05),
            hint_lost: rate(0.6),
            hint_doubled: rate(0.3),
            hint_late: rate(0.3),
            link_cut: rate(0.004),
            node_dies: rate(0.002),
            worker_dies: rate(0.003),
            worker_stalls: rate(0.02),
        }
    }
}
