//! Queued steps: attempts that begin when a worker of their queue would take them, and what becomes of them.
//!
//! There is a worker for every step that is registered or mocked, and it has room. An attempt runs as a whole at one
//! instant, as an inline step's does; how long that takes is said by its mock and by the faults.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use everstep_core::{
    Actor, Command, CommandBody, Failure, OpId, Payload, Rejection, RunId, StepEnd, StepTask, StepTimeout,
};

use super::attempt::info;
use super::{Coming, Engine};
use crate::ctx::STEP_INFO;
use crate::step_ctx::{CANCELED, StepCtx, StepFn};
use crate::testing::effects::date;
use crate::testing::faults::Death;
use crate::testing::{Effect, Error, Mock};
use crate::worker::guarded;

/// An attempt of a queued step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Which {
    pub(super) run: RunId,
    pub(super) step: OpId,
    pub(super) attempt: u32,
}

/// What happens to one.
#[derive(Debug)]
pub(super) enum Turn {
    /// A worker may take it.
    Begin,
    /// It has ended, after so long.
    End(StepEnd, Duration),
    /// A time has run out.
    Expire(StepTimeout),
    /// Its worker is found to be dead.
    Lose,
}

/// The workers of queued steps.
#[derive(Default)]
pub(in crate::testing) struct Queued {
    /// What they have registered.
    pub(in crate::testing) steps: BTreeMap<String, StepFn>,
    begun: BTreeSet<Which>,
    /// How far attempts have said they were.
    details: BTreeMap<(RunId, OpId), Payload>,
    /// When attempts that somebody else ends, or that hang, were last heard of.
    heard: BTreeMap<Which, i64>,
}

impl Engine {
    /// A queued step has an attempt that waits, or is not wanted any more.
    pub(super) fn plan_queued(&mut self, run: RunId, task: &StepTask) {
        let which = Which { run, step: task.step, attempt: task.attempt };
        if task.visible_at == StepTask::HELD || self.queued.begun.contains(&which) {
            return;
        }
        let at = |at: everstep_core::Timestamp| at.as_micros().saturating_sub(self.skew);
        let (visible, start_by, close_by) =
            (at(task.visible_at), task.start_by.map(at), task.close_by.map(at));
        let served = self.queued.steps.contains_key(&task.name)
            || self.mocks.contains_key(&task.name)
            || self.mocked_only;
        if task.canceled {
            return self.at(self.now, Coming::Queued { which, turn: Turn::Expire(StepTimeout::Canceled) });
        }
        if served {
            let taken = super::later(visible.max(self.now), self.faults.delay());
            self.at(taken, Coming::Queued { which, turn: Turn::Begin });
        } else if let Some(at) = start_by {
            self.at(at, Coming::Queued { which, turn: Turn::Expire(StepTimeout::ScheduleToStart) });
        }
        if let Some(at) = close_by {
            self.at(at, Coming::Queued { which, turn: Turn::Expire(StepTimeout::ScheduleToClose) });
        }
    }

    pub(super) async fn queued_turn(&mut self, which: Which, turn: Turn) -> Result<(), Error> {
        let Which { run, step, attempt } = which;
        let body = match turn {
            Turn::Begin => return self.begin_queued(which).await,
            Turn::End(end, elapsed) => {
                CommandBody::FinishStep { step, attempt, elapsed: elapsed.into(), end }
            }
            Turn::Expire(timeout) => {
                if timeout == StepTimeout::Heartbeat
                    && let Some(at) = self.silent_until(which)?
                {
                    self.at(at, Coming::Queued { which, turn });
                    return Ok(());
                }
                // Nobody ends what somebody has taken; the clock of the database may have gone back.
                let taken = self.queued.begun.contains(&which);
                let unclaimed = matches!(timeout, StepTimeout::ScheduleToStart | StepTimeout::Canceled);
                if unclaimed && taken {
                    return Ok(());
                }
                CommandBody::ExpireStep { step, attempt, timeout }
            }
            Turn::Lose => CommandBody::LoseStep { step, attempt },
        };
        let again = match &body {
            CommandBody::ExpireStep { timeout, .. } => Some(*timeout),
            _ => None,
        };
        let ends = matches!(body, CommandBody::FinishStep { .. });
        let mut command = self.command(body);
        if !ends {
            command.actor = Actor::System;
        }
        match self.finish_queued(run, &command) {
            Err(Error::Refused(Rejection::NotDue)) => {
                let turn = Turn::Expire(again.unwrap_or(StepTimeout::ScheduleToClose));
                self.after(1_000_000, Coming::Queued { which, turn });
                Ok(())
            }
            other => other,
        }
    }

    /// What comes too late counts for nothing, as in life.
    fn finish_queued(&mut self, run: RunId, command: &Command) -> Result<(), Error> {
        match self.request(run, command) {
            Err(Error::Refused(
                Rejection::StaleAttempt { .. }
                | Rejection::ResultConflict { .. }
                | Rejection::StepNotFound { .. }
                | Rejection::RunClosed { .. },
            )) => Ok(()),
            other => other,
        }
    }

    /// A worker takes the attempt, unless it is over.
    async fn begin_queued(&mut self, which: Which) -> Result<(), Error> {
        let Which { run, step, attempt } = which;
        let Some(task) = self.run(run)?.step_task(step) else { return Ok(()) };
        if task.attempt != attempt || task.canceled || !self.queued.begun.insert(which) {
            return Ok(());
        }
        let text = format!("'{}' {step}, attempt {attempt}", task.name);
        if let Some(death) = self.faults.death() {
            self.lose_queued(which, &format!("before the effect of {text}"));
            if death == Death::Killed {
                return Ok(());
            }
        }
        let (end, elapsed) = self.execute_queued(which, &task).await;
        if self.faults.death().is_some() {
            self.lose_queued(which, &format!("after the effect of {text}"));
            return Ok(());
        }
        let limit = task.start_to_close.map(everstep_core::Duration::to_std);
        match (limit, end) {
            (Some(limit), Some(_)) if elapsed > limit => {
                self.expire_after(which, task.start_to_close, StepTimeout::StartToClose);
            }
            (_, Some(end)) => {
                self.after(micros(elapsed), Coming::Queued { which, turn: Turn::End(end, elapsed) })
            }
            (_, None) => {
                self.queued.heard.insert(which, self.now);
                self.expire_after(which, task.start_to_close, StepTimeout::StartToClose);
                self.expire_after(which, task.heartbeat, StepTimeout::Heartbeat);
            }
        }
        Ok(())
    }

    fn expire_after(&mut self, which: Which, time: Option<everstep_core::Duration>, timeout: StepTimeout) {
        if let Some(time) = time {
            self.after(time.as_micros(), Coming::Queued { which, turn: Turn::Expire(timeout) });
        }
    }

    /// Until when the attempt may be silent, if that is not over.
    fn silent_until(&self, which: Which) -> Result<Option<i64>, Error> {
        let task = self.run(which.run)?.step_task(which.step).filter(|task| task.attempt == which.attempt);
        let Some((heard, limit)) = self.queued.heard.get(&which).zip(task.and_then(|task| task.heartbeat))
        else {
            return Ok(None);
        };
        Ok(Some(super::later(*heard, limit.as_micros())).filter(|at| *at > self.now))
    }

    fn lose_queued(&mut self, which: Which, place: &str) {
        let lease = self.faults.lease();
        self.tell(format!("the step's worker dies {place}"));
        self.after(lease, Coming::Queued { which, turn: Turn::Lose });
    }

    /// Calls the step's mock, or its code; `None` when somebody else will complete it, and when it is not heard of again.
    async fn execute_queued(&mut self, which: Which, task: &StepTask) -> (Option<StepEnd>, Duration) {
        let Which { run, step, attempt } = which;
        let info = info((run, 0), step, &task.name, attempt);
        let before = self.queued.details.get(&(run, step)).cloned().unwrap_or_default();
        let ctx = StepCtx::new(info.clone(), format!("test.{run}.{step}.{attempt}"), before);
        let mock = self.mocks.get(&task.name).cloned();
        let takes = mock.as_ref().map_or(Duration::ZERO, Mock::time);
        let silent = mock.as_ref().is_some_and(|mock| mock.goes_silent(&info));
        let code = self.queued.steps.get(&task.name).cloned();
        let input = self.input_of(run, task);
        let running = called(ctx.clone(), mock, (self.mocked_only, code), input);
        let result = STEP_INFO.scope(info.clone(), guarded(running, None)).await;
        if let Some(details) = ctx.details() {
            self.queued.details.insert((run, step), details);
        }
        let elapsed = takes + Duration::from_micros(self.faults.delay());
        let end = match &result {
            Ok(value) => StepEnd::Completed(value.clone()),
            Err(_) if ctx.is_deferred() => return (None, elapsed),
            Err(failure) if failure.kind == CANCELED && ctx.is_canceled() => {
                StepEnd::Canceled(failure.message.clone())
            }
            Err(failure) => StepEnd::Failed(failure.clone()),
        };
        self.effects.push(Effect { info, at: date(self.time()), result, recorded: false });
        ((!silent).then_some(end), elapsed)
    }

    fn input_of(&self, run: RunId, task: &StepTask) -> Payload {
        let history = self.runs.get(&run).map(|slot| slot.history.as_slice()).unwrap_or_default();
        let at = usize::try_from(task.scheduled).unwrap_or(usize::MAX).saturating_sub(1);
        history.get(at).and_then(|event| event.body.payload()).cloned().unwrap_or_default()
    }

    /// Ends the present attempt of a queued step, as whoever has its token does.
    pub(in crate::testing) fn end_queued(
        &mut self,
        run: RunId,
        name: &str,
        end: StepEnd,
    ) -> Result<(), Error> {
        let task = self.run(run)?.step_tasks().into_iter().find(|task| task.name == name);
        let (step, attempt) = task.map_or((OpId(0), 0), |task| (task.step, task.attempt));
        let elapsed = everstep_core::Duration::ZERO;
        let command = self.command(CommandBody::FinishStep { step, attempt, elapsed, end });
        self.request(run, &command)
    }

    /// Says that the present attempt of a queued step lives, as whoever has its token does. True when nobody wants it any
    /// more.
    pub(in crate::testing) fn beat_queued(
        &mut self,
        run: RunId,
        name: &str,
        details: Payload,
    ) -> Result<bool, Error> {
        let task = self.run(run)?.step_tasks().into_iter().find(|task| task.name == name);
        let which = task.as_ref().map(|task| Which { run, step: task.step, attempt: task.attempt });
        let heard = which.and_then(|which| self.queued.heard.get_mut(&which));
        let (Some(task), Some(heard)) = (task, heard) else {
            return Err(Rejection::StepNotFound { step: OpId(0) }.into());
        };
        *heard = self.now;
        self.queued.details.insert((run, task.step), details);
        Ok(task.canceled)
    }

    /// A queued step of the run that nobody here can run.
    pub(in crate::testing) fn unserved(&self, run: RunId) -> Option<String> {
        let tasks = self.run(run).ok()?.step_tasks();
        tasks.into_iter().map(|task| task.name).next()
    }
}

async fn called(
    ctx: StepCtx,
    mock: Option<Mock>,
    (mocked_only, code): (bool, Option<StepFn>),
    input: Payload,
) -> Result<Payload, Failure> {
    let info = ctx.info().clone();
    let none = |what: &str| {
        let text = format!("queued step '{}' has no {what} in this environment", info.name);
        Err(Failure::new("NotMocked", text).non_retryable())
    };
    if mock.is_none() && mocked_only {
        return none("mock");
    }
    match mock.and_then(|mock| mock.answer(&info)) {
        Some(answer) => answer,
        None => match code {
            Some(code) => code(ctx, input).await,
            None => none("code"),
        },
    }
}

fn micros(time: Duration) -> u64 {
    everstep_core::Duration::from(time).as_micros()
}
