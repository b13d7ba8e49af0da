//! The rules of one proxy, what they decide about a unit, and how often each has struck.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use anyhow::Context as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng as _;
use serde::{Deserialize, Serialize};

use crate::unit::{Fact, Unit};
use crate::{Direction, Fault, GrpcPoint, Mode, NatsFault, Rule, Scope, When};

/// How often a rule was asked and has struck; kept when the rule is removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The rule, as [`Handle::add`](crate::Handle::add) named it.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Units that it could have struck at.
    pub matched: u64,
    /// Units (or connections) at which it did.
    pub fired: u64,
    /// Whether it is still in force.
    pub active: bool,
}

/// One way of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Way {
    pub(crate) connection: u64,
    pub(crate) up: bool,
}

/// What happens to a unit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) fate: Fate,
    pub(crate) delay: Duration,
    pub(crate) bytes_per_s: Option<u64>,
    pub(crate) copies: u32,
    /// Comes again so many milliseconds later, beside what else happens.
    pub(crate) replays: Vec<u64>,
    /// This rule swallows the answer to the statement.
    pub(crate) lose: Option<u64>,
    /// The unit made a hole in the stream.
    pub(crate) hole: bool,
    pub(crate) reset_after: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum Fate {
    #[default]
    Pass,
    Swallow,
    /// Wait for the next message of such a subject, and go behind it.
    Swap {
        rule: u64,
        subject: String,
    },
    Reset,
    /// So many bytes are passed, then the connection is reset.
    Part(usize),
    /// The client is reset now, the server gets the request so many milliseconds later.
    Late(u64),
}

#[derive(Debug)]
struct Entry {
    id: u64,
    rule: Rule,
    /// The last connection that was made before the rule.
    newest: u64,
    active: bool,
    matched: u64,
    fired: u64,
    /// Units, or for [`Fault::CutAfter`] bytes.
    by_way: HashMap<Way, u64>,
    /// Connections that [`Fault::Silence`] has struck.
    silent: BTreeSet<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: Vec<Entry>,
}

impl Entry {
    fn concerns(&self, connection: u64) -> bool {
        self.active
            && match self.rule.scope {
                Scope::All => true,
                Scope::Open => connection <= self.newest,
                Scope::Later => connection > self.newest,
            }
    }

    fn goes(&self, way: Way) -> bool {
        let direction = match self.rule.direction {
            Direction::Up => way.up,
            Direction::Down => !way.up,
            Direction::Both => true,
        };
        direction && self.concerns(way.connection)
    }

    /// Counts a unit that fits, and says whether it is struck.
    fn draw(&mut self, way: Way, random: &mut ChaCha8Rng) -> bool {
        self.matched += 1;
        let of_connection = self.by_way.entry(Way { up: true, ..way }).or_default();
        *of_connection += 1;
        match self.rule.when {
            When::Always => true,
            When::Chance(p) => chance(p, random),
            When::Nth(n) => self.matched == n,
            When::NthOfConnection(n) => *of_connection == n,
            When::First(n) => self.matched <= n,
        }
    }

    /// Whether the rule's fault is one that could befall this unit.
    fn fits(&self, fact: &Fact) -> bool {
        match (&self.rule.fault, fact) {
            (Fault::Refuse | Fault::HalfOpen, _) => false,
            (
                Fault::LoseAnswer { sql }
                | Fault::LoseRequest { sql }
                | Fault::LateRequest { sql, .. }
                | Fault::Silence { sql },
                Fact::Statement(text),
            ) => text.contains(sql.as_str()),
            (Fault::Nats { subject, .. }, Fact::Message(of)) => of.starts_with(subject.as_str()),
            (Fault::Grpc { at: GrpcPoint::End }, Fact::Response { end, .. }) => *end,
            (Fault::Grpc { at }, Fact::Response { before, .. }) => *before == Some(*at),
            (
                Fault::LoseAnswer { .. }
                | Fault::LoseRequest { .. }
                | Fault::LateRequest { .. }
                | Fault::Silence { .. }
                | Fault::Nats { .. }
                | Fault::Grpc { .. },
                _,
            ) => false,
            _ => true,
        }
    }

    /// Strikes; `false` when it came to nothing, or is to be counted once it has come about.
    fn strike(&mut self, way: Way, unit: &Unit, plan: &mut Plan, random: &mut ChaCha8Rng) -> bool {
        match &self.rule.fault {
            Fault::Delay { ms, jitter_ms } => {
                let jitter = if *jitter_ms == 0 { 0 } else { random.next_u64() % (jitter_ms + 1) };
                plan.delay += Duration::from_millis(ms + jitter);
            }
            Fault::Throttle { bytes_per_s } => {
                let slowest = plan.bytes_per_s.unwrap_or(u64::MAX).min(*bytes_per_s);
                plan.bytes_per_s = Some(slowest);
            }
            Fault::Reset | Fault::LoseRequest { .. } => plan.fate = Fate::Reset,
            Fault::Drop => (plan.fate, plan.hole) = (Fate::Swallow, true),
            Fault::CutAfter { bytes } => {
                let size = u64::try_from(unit.bytes.len()).unwrap_or(u64::MAX);
                let passed = self.by_way.entry(way).or_default();
                let left = bytes.saturating_sub(*passed);
                *passed = passed.saturating_add(size);
                if left > size {
                    return false;
                }
                plan.fate = Fate::Part(usize::try_from(left).unwrap_or(unit.bytes.len()));
            }
            Fault::LoseAnswer { .. } => {
                plan.lose = Some(self.id);
                return false;
            }
            Fault::LateRequest { ms, .. } => plan.fate = Fate::Late(*ms),
            // The way back is held from here on: the server has not even got the request yet.
            Fault::Silence { .. } => _ = self.silent.insert(way.connection),
            Fault::Nats { fault, subject } => match fault {
                NatsFault::Drop => plan.fate = Fate::Swallow,
                NatsFault::Duplicate { more } => plan.copies += more,
                NatsFault::Swap => {
                    plan.fate = Fate::Swap { rule: self.id, subject: subject.clone() };
                    return false;
                }
                NatsFault::Delay { ms } => {
                    plan.fate = Fate::Swallow;
                    plan.replays.push(*ms);
                }
                NatsFault::Replay { ms } => plan.replays.push(*ms),
            },
            Fault::Grpc { at: GrpcPoint::End } => plan.reset_after = true,
            Fault::Grpc { .. } => plan.fate = Fate::Reset,
            Fault::HalfOpen | Fault::Refuse => return false,
        }
        true
    }
}

fn chance(p: f64, random: &mut ChaCha8Rng) -> bool {
    // 53 bits are what a float holds exactly.
    const SCALE: f64 = (1u64 << 53) as f64;
    ((random.next_u64() >> 11) as f64) < p * SCALE
}

impl Table {
    pub(crate) fn add(&mut self, rule: Rule, mode: Mode, newest: u64) -> anyhow::Result<u64> {
        rule.check(mode)?;
        let id = self.entries.len() as u64 + 1;
        let (by_way, silent) = (HashMap::new(), BTreeSet::new());
        self.entries.push(Entry { id, rule, newest, active: true, matched: 0, fired: 0, by_way, silent });
        Ok(id)
    }

    pub(crate) fn remove(&mut self, id: u64) -> anyhow::Result<()> {
        let entry = self.entries.iter_mut().find(|e| e.id == id && e.active);
        entry.with_context(|| format!("there is no rule {id} in force"))?.active = false;
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.entries.iter_mut().for_each(|e| e.active = false);
    }

    pub(crate) fn counts(&self) -> Vec<Count> {
        let count = |e: &Entry| Count {
            id: e.id,
            name: e.rule.name.clone(),
            matched: e.matched,
            fired: e.fired,
            active: e.active,
        };
        self.entries.iter().map(count).collect()
    }

    pub(crate) fn fired(&self, id: u64) -> u64 {
        self.entries.iter().find(|e| e.id == id).map_or(0, |e| e.fired)
    }

    /// A fault has come about that takes longer than a decision.
    pub(crate) fn note(&mut self, id: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|e| e.id == id) {
            entry.fired += 1;
        }
    }

    /// Something is held back. A silence was counted when it began.
    pub(crate) fn held_back(&mut self, id: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|e| e.id == id && e.rule.fault == Fault::HalfOpen) {
            entry.fired += 1;
        }
    }

    /// Whether a new connection is refused.
    pub(crate) fn refuses(&mut self, connection: u64, random: &mut ChaCha8Rng) -> bool {
        let way = Way { connection, up: true };
        for entry in &mut self.entries {
            let is_one = entry.rule.fault == Fault::Refuse && entry.concerns(connection);
            if is_one && entry.draw(way, random) {
                entry.fired += 1;
                return true;
            }
        }
        false
    }

    /// The rule that holds this way back, if one does.
    pub(crate) fn held(&self, way: Way) -> Option<u64> {
        let holds = |e: &&Entry| match e.rule.fault {
            Fault::HalfOpen => e.goes(way),
            Fault::Silence { .. } => e.active && !way.up && e.silent.contains(&way.connection),
            _ => false,
        };
        self.entries.iter().find(holds).map(|e| e.id)
    }

    /// What happens to a unit. The first rule that ends its way is the last that is asked.
    pub(crate) fn judge(&mut self, way: Way, unit: &Unit, random: &mut ChaCha8Rng) -> Plan {
        let mut plan = Plan::default();
        for entry in &mut self.entries {
            if !entry.goes(way) || !entry.fits(&unit.fact) {
                continue;
            }
            // The bytes that may still pass are counted by way, not by unit.
            let drawn = matches!(entry.rule.fault, Fault::CutAfter { .. }) || entry.draw(way, random);
            if drawn && entry.strike(way, unit, &mut plan, random) {
                entry.fired += 1;
            }
            if plan.fate != Fate::Pass {
                break;
            }
        }
        plan
    }
}
