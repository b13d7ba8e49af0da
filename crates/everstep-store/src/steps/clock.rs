//! When a queued step's row is worth a look, and what its instant means.

use everstep_core::{Duration, StepTask, StepTimeout, Timestamp};

use super::Due;

/// A new attempt is left to the hint about it for this long.
const GRACE: Duration = Duration::from_secs(1);
/// An attempt that waits for a worker is spoken of at least this often.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What the instants of a row follow from.
#[derive(Clone, Copy, Debug)]
pub struct StepClock<'a> {
    /// The step.
    pub task: &'a StepTask,
    /// Since when somebody has the attempt.
    pub claimed_at: Option<Timestamp>,
    /// When it last gave a sign of life.
    pub beat_at: Option<Timestamp>,
}

impl StepClock<'_> {
    fn is_held(&self) -> bool {
        self.task.visible_at == StepTask::HELD
    }

    /// When an attempt has run, and been silent, for too long.
    fn of_attempt(&self, claimed_at: Timestamp) -> [(StepTimeout, Option<Timestamp>); 2] {
        let alive = self.beat_at.unwrap_or(claimed_at);
        [
            (StepTimeout::StartToClose, self.task.start_to_close.map(|d| claimed_at.after(d))),
            (StepTimeout::Heartbeat, self.task.heartbeat.map(|d| alive.after(d))),
        ]
    }

    /// When the row is worth a look next, as far as nobody has been told of it.
    pub fn next_look(&self, now: Timestamp) -> Timestamp {
        let task = self.task;
        let close_by = task.close_by.unwrap_or(StepTask::HELD);
        if let Some(claimed_at) = self.claimed_at {
            return self
                .of_attempt(claimed_at)
                .into_iter()
                .filter_map(|(_, at)| at)
                .fold(close_by, Timestamp::min);
        }
        let by = close_by.min(task.start_by.unwrap_or(StepTask::HELD));
        if self.is_held() {
            by
        } else if task.canceled {
            by.min(now)
        } else {
            by.min(if task.visible_at > now { task.visible_at } else { now.after(GRACE) })
        }
    }

    /// What has come.
    pub fn due(&self, now: Timestamp) -> Option<Due> {
        let task = self.task;
        let over = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        if over(task.close_by) {
            return Some(Due::Timeout(StepTimeout::ScheduleToClose));
        }
        if let Some(claimed_at) = self.claimed_at {
            let late = self.of_attempt(claimed_at).into_iter().find(|(_, at)| over(*at));
            return late.map(|(timeout, _)| Due::Timeout(timeout));
        }
        if self.is_held() {
            None
        } else if task.canceled {
            Some(Due::Timeout(StepTimeout::Canceled))
        } else if over(task.start_by) {
            Some(Due::Timeout(StepTimeout::ScheduleToStart))
        } else {
            (task.visible_at <= now).then(|| Due::Visible(task.queue.clone()))
        }
    }

    /// When the row is worth a look again, once somebody was told that it is `due`.
    pub fn look_after(&self, due: Option<&Due>, now: Timestamp, claim: Duration) -> Timestamp {
        match due {
            Some(Due::Timeout(_)) => now.after(claim),
            Some(Due::Visible(_)) => {
                let waited = now.since(self.task.visible_at).clamp(GRACE, SILENCE_MAX);
                let by = [self.task.close_by, self.task.start_by].into_iter().flatten().min();
                now.after(waited).min(by.unwrap_or(StepTask::HELD))
            }
            None => self.next_look(now),
        }
    }
}
