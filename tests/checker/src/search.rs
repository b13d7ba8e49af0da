//! Is there an order of these ops that a sequential model accepts? Wing and Gong's search with Lowe's
//! memory of configurations seen.
//!
//! It knows nothing of workflows: the model is given.

use std::collections::HashSet;
use std::hash::Hash;

/// Most ops of one key. More than that is undecided.
pub(crate) const OPS_MAX: usize = 2_000;
/// Most configurations that one search looks at.
pub(crate) const STEPS_MAX: u64 = 200_000;

/// An op as the search sees it.
#[derive(Clone, Debug)]
pub(crate) struct Call<T> {
    /// When it was invoked.
    pub(crate) invoked: u64,
    /// When its reply came. `None`: it may take effect at any time after its invoke, or never.
    pub(crate) replied: Option<u64>,
    pub(crate) op: T,
}

/// A sequential specification.
pub(crate) trait Model {
    /// What it is about.
    type State: Clone + Eq + Hash;
    /// What is asked of it.
    type Op;

    /// Before any op.
    fn initial(&self) -> Self::State;
    /// States that `state` can go over into by itself, itself not among them.
    fn drift(&self, state: &Self::State) -> Vec<Self::State>;
    /// The state after `op` with the reply that it got; `None` when that reply is impossible in `state`.
    fn apply(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;
    /// Whether everything may end so.
    fn is_end(&self, state: &Self::State) -> bool;
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// An order exists.
    Order,
    /// None does. The deepest order that went well, by index.
    Nothing(Vec<usize>),
    /// Too many ops or too many configurations.
    Undecided,
}

/// Which ops are in the order so far.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Done(Vec<u64>);

impl Done {
    fn has(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }

    fn with(&self, index: usize) -> Self {
        let mut done = self.clone();
        done.0[index / 64] |= 1 << (index % 64);
        done
    }

    fn holds(&self, needed: &Self) -> bool {
        self.0.iter().zip(&needed.0).all(|(done, needed)| done & needed == *needed)
    }
}

struct Search<'a, M: Model> {
    model: &'a M,
    /// In the order of their invokes.
    calls: &'a [&'a Call<M::Op>],
    seen: HashSet<(Done, M::State)>,
    /// Ops that must be in the order.
    needed: Done,
    steps: u64,
    path: Vec<usize>,
    deepest: Vec<usize>,
}

/// Searches for an order in which no op stands before one that had its reply before it was invoked.
///
/// It costs little where clients wait for each other, however many ops there are; what costs is ops at the
/// same time, and what bounds that is `steps_max`.
pub(crate) fn search<M: Model>(model: &M, calls: &[Call<M::Op>], steps_max: u64) -> Found {
    if calls.len() > OPS_MAX {
        return Found::Undecided;
    }
    let mut places: Vec<usize> = (0..calls.len()).collect();
    places.sort_by_key(|place| calls[*place].invoked);
    let sorted: Vec<&Call<M::Op>> = places.iter().map(|place| &calls[*place]).collect();
    let none = Done(vec![0; calls.len().div_ceil(64)]);
    let replied = sorted.iter().enumerate().filter(|(_, call)| call.replied.is_some());
    let needed = replied.fold(none.clone(), |needed, (index, _)| needed.with(index));
    let mut search = Search {
        model,
        calls: &sorted,
        seen: HashSet::new(),
        needed,
        steps: steps_max,
        path: Vec::new(),
        deepest: Vec::new(),
    };
    match search.from(&none, &model.initial()) {
        Some(true) => Found::Order,
        Some(false) => Found::Nothing(search.deepest.iter().map(|index| places[*index]).collect()),
        None => Found::Undecided,
    }
}

impl<M: Model> Search<'_, M> {
    /// `None` when there are no steps left. The depth is at most a few calls for each op.
    fn from(&mut self, done: &Done, state: &M::State) -> Option<bool> {
        if done.holds(&self.needed) && self.model.is_end(state) {
            return Some(true);
        }
        if !self.seen.insert((done.clone(), state.clone())) {
            return Some(false);
        }
        self.steps = self.steps.checked_sub(1)?;
        if self.path.len() > self.deepest.len() {
            self.deepest.clone_from(&self.path);
        }
        for index in self.next(done) {
            let call = self.calls[index];
            let Some(next) = self.model.apply(state, &call.op) else { continue };
            // An op that may be left out and changes nothing is left out.
            if call.replied.is_none() && next == *state {
                continue;
            }
            self.path.push(index);
            let found = self.from(&done.with(index), &next)?;
            self.path.pop();
            if found {
                return Some(true);
            }
        }
        for next in self.model.drift(state) {
            if self.from(done, &next)? {
                return Some(true);
            }
        }
        Some(false)
    }

    /// Ops that may stand next: invoked before the first reply that is still missing.
    fn next(&self, done: &Done) -> Vec<usize> {
        let mut horizon = u64::MAX;
        let mut next = Vec::new();
        for (index, call) in self.calls.iter().enumerate() {
            if call.invoked > horizon {
                break;
            }
            if !done.has(index) {
                horizon = horizon.min(call.replied.unwrap_or(u64::MAX));
                next.push(index);
            }
        }
        next.retain(|index| self.calls[*index].invoked <= horizon);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register with reads and writes: the textbook's examples.
    struct Register;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u8),
        Read(u8),
    }

    impl Model for Register {
        type State = u8;
        type Op = Op;

        fn initial(&self) -> u8 {
            0
        }

        fn drift(&self, _: &u8) -> Vec<u8> {
            Vec::new()
        }

        fn apply(&self, state: &u8, op: &Op) -> Option<u8> {
            match op {
                Op::Write(value) => Some(*value),
                Op::Read(value) => (state == value).then_some(*state),
            }
        }

        fn is_end(&self, _: &u8) -> bool {
            true
        }
    }

    fn call(invoked: u64, replied: u64, op: Op) -> Call<Op> {
        Call { invoked, replied: (replied > 0).then_some(replied), op }
    }

    fn found(calls: &[Call<Op>]) -> Found {
        search(&Register, calls, STEPS_MAX)
    }

    #[test]
    fn concurrent_ops_may_stand_either_way() {
        assert_eq!(found(&[call(1, 4, Op::Write(1)), call(2, 3, Op::Read(0))]), Found::Order);
        assert_eq!(found(&[call(1, 4, Op::Write(1)), call(2, 3, Op::Read(1))]), Found::Order);
    }

    #[test]
    fn a_stale_read_is_found() {
        let stale = found(&[call(1, 2, Op::Write(1)), call(3, 4, Op::Read(0))]);
        assert_eq!(stale, Found::Nothing(vec![0]));
    }

    #[test]
    fn a_value_that_comes_and_goes_is_found() {
        let calls = [
            call(1, 9, Op::Write(1)),
            call(2, 3, Op::Read(1)),
            call(4, 5, Op::Read(0)),
            call(6, 7, Op::Read(1)),
        ];
        assert!(matches!(found(&calls), Found::Nothing(_)));
    }

    #[test]
    fn an_unknown_op_takes_effect_late_or_never() {
        assert_eq!(found(&[call(1, 0, Op::Write(1)), call(2, 3, Op::Read(0))]), Found::Order);
        let late = [call(1, 0, Op::Write(1)), call(2, 3, Op::Read(0)), call(8, 9, Op::Read(1))];
        assert_eq!(found(&late), Found::Order);
        // Not before it was invoked, and not twice.
        assert!(matches!(found(&[call(2, 3, Op::Read(1)), call(4, 0, Op::Write(1))]), Found::Nothing(_)));
        let twice = [
            call(1, 0, Op::Write(1)),
            call(2, 3, Op::Read(1)),
            call(4, 5, Op::Write(2)),
            call(6, 7, Op::Read(2)),
            call(8, 9, Op::Read(1)),
        ];
        assert!(matches!(found(&twice), Found::Nothing(_)));
    }

    #[test]
    fn too_much_is_undecided() {
        let many: Vec<_> = (0..=OPS_MAX as u64).map(|n| call(2 * n, 2 * n + 1, Op::Write(1))).collect();
        assert_eq!(found(&many), Found::Undecided);
        let calls: Vec<_> = (0..20).map(|n| call(n, n + 100, Op::Write(n as u8))).collect();
        let impossible: Vec<_> = calls.into_iter().chain([call(200, 201, Op::Read(99))]).collect();
        assert_eq!(search(&Register, &impossible, 1_000), Found::Undecided);
    }

    #[test]
    fn a_long_history_of_a_client_that_waits_is_quick() {
        let mut calls: Vec<_> = (1..1_500).map(|n| call(2 * n, 2 * n + 1, Op::Read(0))).collect();
        calls.extend((0..10).map(|n| call(100 * n, 0, Op::Write(1))));
        assert_eq!(search(&Register, &calls, 20_000), Found::Order);
        calls.push(call(4_000, 4_001, Op::Read(2)));
        let last = calls.len() - 1;
        let found = search(&Register, &calls, 20_000);
        assert!(
            matches!(found, Found::Nothing(deepest) if deepest.len() > 1_400 && !deepest.contains(&last))
        );
    }

    /// Held against the slow way: every order of up to six ops.
    #[test]
    fn it_agrees_with_trying_every_order() {
        let mut seed = 7u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let (mut orders, mut nothings) = (0, 0);
        for _ in 0..3_000 {
            let calls: Vec<_> = (0..2 + next(5))
                .map(|_| {
                    let invoked = 1 + next(12);
                    let replied = if next(5) == 0 { 0 } else { invoked + 1 + next(6) };
                    let value = next(3) as u8;
                    call(invoked, replied, if next(2) == 0 { Op::Write(value) } else { Op::Read(value) })
                })
                .collect();
            let by_hand = every_order(&calls, &mut Vec::new());
            match found(&calls) {
                Found::Order => assert!(by_hand, "{calls:?}"),
                Found::Nothing(_) => assert!(!by_hand, "{calls:?}"),
                Found::Undecided => panic!("undecided: {calls:?}"),
            }
            *(if by_hand { &mut orders } else { &mut nothings }) += 1;
        }
        assert!(orders > 300 && nothings > 300, "{orders} {nothings}");
    }

    fn every_order(calls: &[Call<Op>], order: &mut Vec<usize>) -> bool {
        let complete = (0..calls.len()).all(|i| order.contains(&i) || calls[i].replied.is_none());
        if complete && allowed(calls, order) {
            return true;
        }
        (0..calls.len()).any(|index| {
            if order.contains(&index) {
                return false;
            }
            order.push(index);
            let found = every_order(calls, order);
            order.pop();
            found
        })
    }

    fn allowed(calls: &[Call<Op>], order: &[usize]) -> bool {
        let mut state = 0;
        for (at, &index) in order.iter().enumerate() {
            let later = &order[at + 1..];
            let early = later.iter().any(|&i| calls[i].replied.is_some_and(|r| r < calls[index].invoked));
            match Register.apply(&state, &calls[index].op) {
                Some(next) if !early => state = next,
                _ => return false,
            }
        }
        true
    }
}
