//! A set of op ids that stays small when ids end roughly in order.

use std::collections::BTreeSet;

use crate::OpId;

/// Every id up to `below`, and a few above.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct IdSet {
    /// All ids from 1 to this one are in the set.
    below: u32,
    above: BTreeSet<u32>,
}

impl IdSet {
    pub(super) fn contains(&self, id: OpId) -> bool {
        (id.0 >= 1 && id.0 <= self.below) || self.above.contains(&id.0)
    }

    pub(super) fn insert(&mut self, id: OpId) {
        if id.0 == self.below + 1 {
            self.below += 1;
            while self.above.remove(&(self.below + 1)) {
                self.below += 1;
            }
        } else if id.0 > self.below {
            self.above.insert(id.0);
        }
    }
}
