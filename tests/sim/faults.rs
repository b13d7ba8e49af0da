//! How often things go wrong.

use everstep_tests::program::Dice;

/// How often things go wrong; drawn anew for each seed, all zero after the last fault heals.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// The append is done, its reply is lost.
    pub(crate) reply_lost: f64,
    /// Nothing was done, and nobody knows.
    pub(crate) request_lost: f64,
    /// The reply is lost, and the append happens a while later.
    pub(crate) commit_late: f64,
    /// The append is done, its reply takes seconds.
    pub(crate) reply_slow: f64,
    /// Nothing was done, and the store says so.
    pub(crate) unavailable: f64,
    /// Another question than an append was acted on, and its answer is lost.
    pub(crate) answer_lost: f64,
    pub(crate) hint_lost: f64,
    pub(crate) hint_doubled: f64,
    pub(crate) hint_late: f64,
    pub(crate) link_cut: f64,
    /// What a worker says takes seconds, and so does all that it says after that on the same stream.
    pub(crate) link_slow: f64,
    /// A heartbeat is never sent: the lease runs out under a worker that lives.
    pub(crate) heartbeat_lost: f64,
    /// A node dies between two of its outputs.
    pub(crate) node_dies: f64,
    pub(crate) worker_dies: f64,
    pub(crate) worker_stalls: f64,
    /// A client forgets everything but its request ids, before it hears the answer.
    pub(crate) client_dies: f64,
    /// A worker comes back with the other build.
    pub(crate) build_changes: f64,
    /// The database's clock is set, each second.
    pub(crate) clock_set: f64,
}

impl Rates {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let mut rate =
            |max: f64| if dice.chance(0.5) { max * dice.below(1_000) as f64 / 1_000.0 } else { 0.0 };
        Self {
            reply_lost: rate(0.08),
            request_lost: rate(0.05),
            commit_late: rate(0.08),
            reply_slow: rate(0.3),
            unavailable: rate(0.05),
            answer_lost: rate(0.05),
            hint_lost: rate(0.8),
            hint_doubled: rate(0.4),
            hint_late: rate(0.4),
            link_cut: rate(0.02),
            link_slow: rate(0.06),
            heartbeat_lost: rate(0.3),
            node_dies: rate(0.008),
            worker_dies: rate(0.04),
            worker_stalls: rate(0.04),
            client_dies: rate(0.2),
            build_changes: rate(1.0),
            clock_set: rate(0.1),
        }
    }
}
