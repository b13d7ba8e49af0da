//! What goes wrong in a case, and when.
//!
//! The whole schedule is drawn before anything runs, from streams that nothing else draws from. What the system's
//! scheduler makes of it is free: a seed promises the same schedule, not the same interleaving.

mod card;
mod clock;
mod strike;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everstep_checker::format::FaultCount;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::dice::{Dice, Stream};
use crate::pace;
use crate::topology::{StoreKind, Topology, held};

pub use card::{Card, Key};
pub use clock::{ClockFile, library as clock_library};

/// One fault at one victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Strike {
    /// Which fault.
    pub card: Card,
    /// Which of those that it can strike.
    pub victim: usize,
    /// How long after the period's beginning.
    pub after_ms: u64,
    /// How long until it is healed.
    pub hold_ms: u64,
    /// Decides what is left to decide.
    pub luck: u64,
}

/// Some seconds with some faults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Period {
    /// How long.
    pub length_ms: u64,
    /// What happens; nothing in a quiet one.
    pub strikes: Vec<Strike>,
}

/// What there is to strike.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Which database.
    pub store: StoreKind,
    /// Server nodes.
    pub nodes: usize,
    /// Workers.
    pub workers: usize,
    /// The lease of sessions.
    pub lease_ms: u64,
    /// Whether wall clocks can be set.
    pub clocks: bool,
}

/// Draws a schedule that is `length` long. The first faults of it are those without which a case proves little;
/// then all come up in turn, in an order that the seed decides.
#[must_use]
pub fn draw(seed: u64, field: &Field, length: Duration) -> Vec<Period> {
    let mut dice = Dice::new(seed, Stream::Nemesis, 0);
    let mut victims = Dice::new(seed, Stream::Victims, 0);
    let (shortest, longest) =
        if length > Duration::from_secs(120) { (5_000, 15_000) } else { (3_000, 8_000) };
    let mut left = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    let mut deck: Vec<Card> = Vec::new();
    let mut musts = shuffled(Card::musts(field), &mut dice);
    let mut periods = Vec::new();
    while left > 0 {
        let length_ms = dice.between(shortest, longest).min(left);
        left -= length_ms;
        // A short rest is too short for most faults; and the first period always has some.
        let quiet = length_ms < 1_500 || (!periods.is_empty() && musts.is_empty() && dice.percent(25));
        let mut period = Period { length_ms, strikes: Vec::new() };
        let mut keys = BTreeSet::new();
        let wanted = if quiet { 0 } else { dice.between(1, 3) };
        for _ in 0..wanted {
            if deck.is_empty() {
                deck = shuffled(Card::all(field), &mut dice);
            }
            let card = musts.pop().or_else(|| deck.pop());
            let Some(card) = card else { break };
            let strike = Strike::draw(card, field, length_ms, &mut victims);
            let needs = strike.card.keys(strike.victim, field);
            if needs.iter().any(|key| keys.contains(key)) {
                // Two faults at one place could hide each other; this one comes later.
                if Card::musts(field).contains(&card) {
                    musts.push(card)
                } else {
                    deck.insert(0, card)
                }
                continue;
            }
            keys.extend(needs);
            period.strikes.push(strike);
        }
        periods.push(period);
    }
    periods
}

fn shuffled(mut cards: Vec<Card>, dice: &mut Dice) -> Vec<Card> {
    for last in (1..cards.len()).rev() {
        let other = usize::try_from(dice.below(last as u64 + 1)).unwrap_or(0);
        cards.swap(last, other);
    }
    cards
}

impl Strike {
    fn draw(card: Card, field: &Field, length_ms: u64, dice: &mut Dice) -> Self {
        let (shortest, longest) = card.hold(field.lease_ms);
        let victims = card.victims(field).max(1) as u64;
        Self {
            card,
            victim: usize::try_from(dice.below(victims)).unwrap_or(0),
            after_ms: dice.below(length_ms / 3),
            hold_ms: dice.between(shortest, longest),
            luck: dice.number(),
        }
    }
}

/// Carries a schedule out.
#[derive(Debug, Default)]
pub struct Nemesis {
    counts: Mutex<BTreeMap<String, FaultCount>>,
    problems: Mutex<Vec<String>>,
}

impl Nemesis {
    /// How often each fault was drawn and really happened.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, FaultCount> {
        held(&self.counts).clone()
    }

    /// What faults have found out by themselves.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        held(&self.problems).clone()
    }

    /// Strikes as the schedule says. Every fault is healed when this returns.
    pub async fn run(self: &Arc<Self>, topology: &Arc<Topology>, schedule: &[Period]) {
        for period in schedule {
            let over = tokio::time::Instant::now() + Duration::from_millis(period.length_ms);
            let mut strikes = JoinSet::new();
            for strike in period.strikes.clone() {
                let (nemesis, topology) = (Arc::clone(self), Arc::clone(topology));
                strikes.spawn(async move { nemesis.strike(&topology, strike).await });
            }
            // A fault may need longer than its period; the next one begins when it is healed.
            while strikes.join_next().await.is_some() {}
            pace::until(over).await;
        }
    }

    async fn strike(&self, topology: &Topology, strike: Strike) {
        pace::hold(Duration::from_millis(strike.after_ms)).await;
        let name = strike.card.name();
        held(&self.counts).entry(name.clone()).or_default().drawn += 1;
        tracing::info!(?strike, "fault");
        match strike::carry_out(topology, &strike).await {
            Ok(true) => held(&self.counts).entry(name).or_default().fired += 1,
            Ok(false) => tracing::info!(?strike, "came to nothing"),
            Err(error) => held(&self.problems).push(format!("{name}: {error:#}")),
        }
    }
}
