//! Everything random of a case, drawn from one seed.
//!
//! Each concern has a stream of its own: a client that sends one op more must not move the faults.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What is drawn from one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Where workers and clients connect.
    Topology = 1,
    /// The programs of the runs.
    Programs = 2,
    /// What clients do, and when. One stream a client, behind this number.
    Clients = 100,
    /// Which faults there are, and when.
    Nemesis = 3,
    /// Whom they strike.
    Victims = 4,
}

/// Random numbers of one stream.
#[derive(Clone, Debug)]
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// The numbers of `stream` under `seed`; `member` tells streams of one concern apart.
    #[must_use]
    pub fn new(seed: u64, stream: Stream, member: u32) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream as u64 + u64::from(member));
        Self(rng)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `limit`; 0 where there is none.
    pub fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.number() % limit }
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True in `percent` of a hundred cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of these; `None` of none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let index = usize::try_from(self.below(of.len() as u64)).unwrap_or(0);
        of.get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_one_seed_differ_and_repeat() {
        let draw = |stream, member| Dice::new(7, stream, member).number();
        assert_eq!(draw(Stream::Nemesis, 0), draw(Stream::Nemesis, 0));
        let all = [
            draw(Stream::Nemesis, 0),
            draw(Stream::Victims, 0),
            draw(Stream::Clients, 0),
            draw(Stream::Clients, 1),
        ];
        for (n, a) in all.iter().enumerate() {
            assert!(!all[n + 1..].contains(a), "{all:?}");
        }
    }
}
