//! Bugs that can be planted. Each is a mistake that a durable-execution engine was found to have.

/// A mistake that the tests must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bug {
    /// A commit of an earlier owner is taken.
    SkipEpochCheck,
    /// Callers hear of success before the append is durable.
    ReplyBeforeCommit,
    /// An append whose outcome is unknown is made again behind whatever is there, not settled by position.
    BlindRetry,
    /// The sweep remembers the greatest run id it saw, and never looks at a smaller one again.
    GreatestIdCursor,
    /// A hint or wake for a run that is being written is dropped.
    DropWakeWhenBusy,
    /// The row of a started timer is not written.
    ForgetTimerRow,
    /// Whether a signal came before is known only to the memory of this node.
    DedupeInMemory,
    /// A commit to a closed run is appended.
    AcceptAfterTerminal,
    /// A run that needs a worker gets a hint, and no row that outlives the hint.
    HintsAsTruth,
    /// A decision that lost its race is appended again, as it was, behind what won.
    ReadBeforeClaim,
    /// SQLite does not wait for the disk.
    SqliteNoSync,
    /// A request id is good for every namespace.
    RequestIdWithoutNamespace,
    /// What a worker did before the record is taken though something else was recorded first.
    AheadOfUnseen,
    /// An attempt of a guarded step that was under way when its owner was lost is not put in doubt.
    ForgetDoubt,
    /// An update is accepted though something was recorded since its code agreed.
    AcceptStaleUpdate,
    /// What another run has to hear is forgotten before it has heard it.
    DeliverAndForget,
    /// A child's run id is drawn each time it is started.
    ChildIdRandom,
    /// A workflow that goes on takes along only what its code had seen.
    CarrySeenOnly,
    /// What is known of an update's id before its code is asked is not looked at again when it is accepted.
    AcceptUpdateTwice,
    /// What has to wait for its turn to be told is forgotten, and left to the sweep.
    ForgetItsTurn,
    /// What runs tell one another is told side by side.
    TellSideBySide,
    /// The end of an attempt of a queued step counts, though the attempt was given up and another one is due.
    AcceptStaleAttempt,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::SkipEpochCheck,
        Self::ReplyBeforeCommit,
        Self::BlindRetry,
        Self::GreatestIdCursor,
        Self::DropWakeWhenBusy,
        Self::ForgetTimerRow,
        Self::DedupeInMemory,
        Self::AcceptAfterTerminal,
        Self::HintsAsTruth,
        Self::ReadBeforeClaim,
        Self::SqliteNoSync,
        Self::RequestIdWithoutNamespace,
        Self::AheadOfUnseen,
        Self::ForgetDoubt,
        Self::AcceptStaleUpdate,
        Self::DeliverAndForget,
        Self::ChildIdRandom,
        Self::CarrySeenOnly,
        Self::AcceptUpdateTwice,
        Self::ForgetItsTurn,
        Self::TellSideBySide,
        Self::AcceptStaleAttempt,
    ];
}

/// Whether `bug` is planted here: on this thread by `plant`, or in this process by `EVERSTEP_PLANTED_BUG`.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
#[must_use]
pub const fn planted(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "planted-bugs")]
mod on {
    use std::cell::Cell;
    use std::sync::OnceLock;

    use super::Bug;

    thread_local! {
        static HERE: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    static PROCESS: OnceLock<Option<Bug>> = OnceLock::new();

    /// Whether `bug` is planted here: on this thread by [`plant`], or in this process by
    /// `EVERSTEP_PLANTED_BUG`.
    ///
    /// # Panics
    /// When the variable names no bug: a test that plants nothing would prove nothing.
    #[must_use]
    pub fn planted(bug: Bug) -> bool {
        let process = PROCESS.get_or_init(|| {
            let name = std::env::var("EVERSTEP_PLANTED_BUG").ok().filter(|n| !n.is_empty())?;
            let found = Bug::ALL.into_iter().find(|b| b.name() == name);
            assert!(found.is_some(), "EVERSTEP_PLANTED_BUG={name}: no such bug");
            found
        });
        HERE.get() == Some(bug) || *process == Some(bug)
    }

    /// Plants a bug on this thread, for as long as the value lives.
    #[must_use]
    pub fn plant(bug: Bug) -> Planted {
        HERE.set(Some(bug));
        Planted(())
    }

    /// A bug is planted on this thread until this is dropped.
    #[derive(Debug)]
    pub struct Planted(());

    impl Drop for Planted {
        fn drop(&mut self) {
            HERE.set(None);
        }
    }

    impl Bug {
        /// Its name, as `EVERSTEP_PLANTED_BUG` takes it: `skip-epoch-check`.
        #[must_use]
        pub fn name(self) -> String {
            let mut name = String::new();
            for c in format!("{self:?}").chars() {
                if c.is_uppercase() && !name.is_empty() {
                    name.push('-');
                }
                name.extend(c.to_lowercase());
            }
            name
        }
    }
}

#[cfg(feature = "planted-bugs")]
pub use on::{Planted, plant, planted};
