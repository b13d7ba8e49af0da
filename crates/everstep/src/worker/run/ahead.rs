//! Going on before the record: when a step ends and nothing else is under way, the workflow is told at once, and
//! what it wants next goes into the commit that records the step. Its end costs no commit of its own then.
//!
//! What the workflow saw has to be what the history will say, so such a commit names the place and the instant of
//! the step's event, and the server records it like that or refuses it. A refused one is not the end of the step:
//! its result is recorded as usual, and the run is given back, because code cannot forget what it was told. Nothing
//! that could be seen outside begins before the record: the next steps wait for it.

#[cfg(test)]
pub(super) mod tests;

use std::sync::atomic::Ordering;
use std::time::Duration;

use everstep_core::{Actor, CommandId, CommitCommand, Event, EventBody, Seq, Timestamp, limits};

use super::{RunTask, Unacked};
use crate::machine::{Machine, Work};

/// Longest time since an event, by which the database's clock is reckoned.
const RECKON_MAX: Duration = Duration::from_secs(5);
/// The reckoning is slow by this part of the time that has passed, so that no clock is slower.
const SLOW: u32 = 1_000;

/// What the workflow has been told and nobody has recorded yet.
pub(super) struct Ahead {
    /// The commit that records it.
    number: u32,
    seq: Seq,
    at: Timestamp,
    /// The end of the step, to be recorded by itself if it cannot be recorded like this.
    end: CommitCommand,
    /// Commands that found no room in the commit.
    commands: Vec<CommitCommand>,
    /// Attempts that wait for the record.
    attempts: Vec<Work>,
}

impl Ahead {
    fn is(&self, event: &Event) -> bool {
        let (
            EventBody::StepCompleted { step, attempt, .. },
            CommitCommand::CompleteStep { step: s, attempt: a, .. },
        ) = (&event.body, &self.end)
        else {
            return false;
        };
        event.seq == self.seq && event.at == self.at && (step, attempt) == (s, a)
    }
}

impl RunTask {
    /// The instant under which the end of a step can be told now; `None` when it has to be recorded first.
    pub(super) fn may_go_ahead(&self) -> Option<Timestamp> {
        let (last, heard) = self.clock?;
        let quiet = self.running.is_empty()
            && self.waiting.is_empty()
            && self.starting.is_empty()
            && self.unacked.is_empty();
        let connected = self.generation == self.outbox.generation();
        let since = heard.elapsed();
        // A run that is sent signals, or waits for others, would meet news under way again and again.
        let awaits = self.machine.as_ref().is_some_and(Machine::awaits_others);
        let calm = !self.called && !awaits && !self.draining && !self.leaving && since < RECKON_MAX;
        (quiet && connected && calm && self.ahead.is_none())
            .then(|| Timestamp::from_micros(last).after((since - since / SLOW).into()))
    }

    /// Tells the workflow that a step has ended, and commits that with what it wants next.
    pub(super) fn go_ahead(&mut self, end: CommitCommand, at: Timestamp) {
        let Some(event) = self.foretold(&end, at) else { return self.commit(vec![end]) };
        let told = self.machine.as_mut().map_or(Ok(()), |machine| machine.apply(&event));
        if let Err(obstacle) = told {
            self.commit(vec![end]);
            return self.meet(obstacle);
        }
        let (mut more, attempts) = self.wanted();
        let commands = more.split_off(more.len().min(limits::COMMIT_COMMANDS_MAX - 1));
        more.insert(0, end.clone());
        let (number, seen) = (self.next_number, event.seq - 1);
        self.ahead = Some(Ahead { number, seq: event.seq, at, end, commands, attempts });
        self.commit_one(Unacked { number, seen, commands: more, ahead: Some(at) });
    }

    /// The event as it will be recorded.
    fn foretold(&self, end: &CommitCommand, at: Timestamp) -> Option<Event> {
        let CommitCommand::CompleteStep { step, name, attempt, elapsed, result } = end else { return None };
        let (step, name, attempt) = (*step, name.clone(), *attempt);
        Some(Event {
            seq: self.seen.load(Ordering::Acquire) + 1,
            at,
            epoch: self.epoch,
            command_id: CommandId::of_worker(self.run, self.epoch, self.next_number),
            actor: Actor::Worker(String::new()),
            body: EventBody::StepCompleted { step, name, attempt, elapsed: *elapsed, result: result.clone() },
        })
    }

    /// Whether this is what the workflow was told already: then it is news no more. If something else stands in
    /// its place, the code has gone on from something that did not happen.
    pub(super) fn was_told(&mut self, event: &Event) -> bool {
        let Some(ahead) = self.ahead.take_if(|ahead| ahead.seq <= event.seq) else { return false };
        if !ahead.is(event) {
            // The commit is refused, which is heard next.
            self.given_up = true;
            self.leaving = true;
            self.ahead = Some(ahead);
            return false;
        }
        self.seen.store(event.seq, Ordering::Release);
        if !ahead.commands.is_empty() {
            self.commit(ahead.commands);
        }
        for attempt in ahead.attempts {
            self.begin(attempt);
        }
        true
    }

    /// A server that does not know what going ahead is has recorded the end of the step in its own way.
    pub(super) fn check_ahead(&mut self, committed: u32) {
        if self.ahead.take_if(|ahead| ahead.number <= committed).is_some() {
            self.release("the end of a step was recorded otherwise than told".to_owned());
        }
    }

    /// The commit was refused. True when it was one that went ahead; the run is given back then.
    pub(super) fn fell_back(&mut self, number: u32) -> bool {
        let Some(ahead) = self.ahead.take_if(|ahead| ahead.number == number) else { return false };
        let reason = "other news came before the end of a step".to_owned();
        self.given_up = true;
        self.leaving = true;
        self.commit(vec![ahead.end, CommitCommand::Release { reason }]);
        true
    }
}
