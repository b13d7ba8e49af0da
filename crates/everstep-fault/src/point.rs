//! Failpoints: named places beside a durable boundary, where a test can end, fail or delay the process.

/// Every point, so that a test can ask for one that was never hit.
pub const POINTS: &[&str] = &[
    "append.before_commit",
    "append.after_commit",
    "reply.before",
    "outbox.claimed",
    "outbox.published",
    "outbox.marked",
    "outbox.delivered",
    "timer.claimed",
    "timer.fired",
    "successor.committed",
    "step.claimed",
    "step.lost",
    "step.ended",
    "ask.validated",
    "lease.claimed",
    "lease.renewed",
    "worker.step_started",
    "worker.before_effect",
    "worker.after_effect",
    "worker.reported",
];

/// A failpoint says that what it stands for has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injected;

impl std::fmt::Display for Injected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("injected by a failpoint")
    }
}

impl std::error::Error for Injected {}

/// The failpoint `point`: nothing, the end of the process, a failure, or a delay, as the test wants it.
///
/// # Errors
/// [`Injected`] when the test wants the work at this place to fail.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn at(_point: &'static str) -> std::future::Ready<Result<(), Injected>> {
    std::future::ready(Ok(()))
}

#[cfg(feature = "failpoints")]
pub use on::at;

#[cfg(feature = "failpoints")]
mod on {
    use std::collections::HashMap;
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};
    use std::sync::{Mutex, OnceLock, PoisonError};
    use std::time::Duration;

    use super::{Injected, POINTS};

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Action {
        Abort,
        Error,
        Sleep(Duration),
    }

    /// What to do at which hit of a point, and where hits are counted.
    #[derive(Debug)]
    struct Plan {
        actions: HashMap<String, (Action, u64)>,
        log: File,
        /// The lock of the file keeps other processes out, but not the threads of this one.
        turn: Mutex<()>,
    }

    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

    /// The failpoint `point`: nothing, the end of the process, a failure, or a delay, as the test wants it.
    ///
    /// Cancel safe: a cancelled delay is only shorter.
    ///
    /// # Errors
    /// [`Injected`] when the test wants the work at this place to fail.
    ///
    /// # Panics
    /// When `EVERSTEP_FAILPOINTS` is not understood or names a point that does not exist, and when the log cannot
    /// be written: a test that plans nothing would prove nothing.
    pub async fn at(point: &'static str) -> Result<(), Injected> {
        let Some(plan) = PLAN.get_or_init(Plan::of_environment) else { return Ok(()) };
        let hit = plan.hit(point);
        assert!(hit.is_ok(), "the log of failpoints: {hit:?}");
        match hit.ok().flatten() {
            None => Ok(()),
            Some(Action::Abort) => std::process::abort(),
            Some(Action::Error) => Err(Injected),
            Some(Action::Sleep(time)) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
        }
    }

    impl Plan {
        fn of_environment() -> Option<Self> {
            let path = std::env::var_os("EVERSTEP_FAILPOINTS_LOG")?;
            let text = std::env::var("EVERSTEP_FAILPOINTS").unwrap_or_default();
            let actions = parse(&text);
            assert!(actions.is_some(), "EVERSTEP_FAILPOINTS={text}: not point=action@hit;...");
            let log = File::options().create(true).read(true).append(true).open(&path);
            assert!(log.is_ok(), "{}: {log:?}", path.to_string_lossy());
            Some(Self { actions: actions?, log: log.ok()?, turn: Mutex::new(()) })
        }

        /// Counts a hit, and says what is planned for it. All processes of a test count in one file, so that
        /// what was planned happens once, whichever of them comes to it and however often they are started.
        fn hit(&self, point: &'static str) -> std::io::Result<Option<Action>> {
            debug_assert!(POINTS.contains(&point), "{point} is not in POINTS");
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            self.log.lock()?;
            let mut log = &self.log;
            let mut text = String::new();
            log.rewind()?;
            log.read_to_string(&mut text)?;
            let before = text.lines().filter(|line| line.split(' ').next() == Some(point)).count();
            let number = before as u64 + 1;
            let action = self.actions.get(point).filter(|(_, at)| *at == number).map(|(action, _)| *action);
            let what = action.map_or_else(String::new, |action| format!(" {action:?}"));
            let written = log.write_all(format!("{point} {number}{what}\n").as_bytes());
            self.log.unlock()?;
            written.map(|()| action)
        }
    }

    fn parse(text: &str) -> Option<HashMap<String, (Action, u64)>> {
        let entries = text.split(';').filter(|e| !e.is_empty());
        entries
            .map(|entry| {
                let (point, rest) = entry.split_once('=')?;
                let (action, hit) = rest.split_once('@')?;
                let action = match action {
                    "abort" => Action::Abort,
                    "error" => Action::Error,
                    other => {
                        let ms = other.strip_prefix("sleep(")?.strip_suffix(')')?.parse().ok()?;
                        Action::Sleep(Duration::from_millis(ms))
                    }
                };
                POINTS.contains(&point).then_some((point.to_owned(), (action, hit.parse().ok()?)))
            })
            .collect()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn threads_never_count_one_hit_twice() -> std::io::Result<()> {
            let path = std::env::temp_dir().join(format!("everstep-fault-{}.log", std::process::id()));
            let log = File::options().create(true).read(true).append(true).open(&path)?;
            let actions = parse("reply.before=error@150").unwrap_or_default();
            let plan = Plan { actions, log, turn: Mutex::new(()) };
            let fired: usize = std::thread::scope(|scope| {
                let count = || (0..100).filter(|_| matches!(plan.hit("reply.before"), Ok(Some(_)))).count();
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(count)).collect();
                threads.into_iter().filter_map(|thread| thread.join().ok()).sum()
            });
            let text = std::fs::read_to_string(&path)?;
            std::fs::remove_file(&path)?;
            assert_eq!(fired, 1, "{text}");
            let number = |line: &str| line.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
            let numbers: Vec<u64> = text.lines().filter_map(number).collect();
            assert_eq!(numbers, (1..=800).collect::<Vec<_>>());
            Ok(())
        }

        #[test]
        fn a_plan_names_points_actions_and_hits() {
            let plan = parse("append.after_commit=abort@2;timer.claimed=sleep(30)@1").unwrap_or_default();
            assert_eq!(plan["append.after_commit"], (Action::Abort, 2));
            assert_eq!(plan["timer.claimed"], (Action::Sleep(Duration::from_millis(30)), 1));
            for bad in
                ["append.after_commit", "nowhere=abort@1", "timer.fired=explode@1", "timer.fired=abort@x"]
            {
                assert!(parse(bad).is_none(), "{bad}");
            }
        }
    }
}
