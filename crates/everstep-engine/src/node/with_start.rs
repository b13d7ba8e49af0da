//! What comes with a start: it goes into the append of a run that starts, and a call that is repeated after its run has
//! ended finds that run.

use everstep_core::{CurrentRun, Event, Run};
use everstep_store as store;

use super::starts::StartJob;
use super::{Node, Output};
use crate::Started;

impl StartJob {
    /// The closed run that has to be looked at before another one starts: it may have had what comes with this start
    /// from an earlier call, which found it open.
    fn next_look(&mut self, current: Option<CurrentRun>) -> Option<CurrentRun> {
        self.start.first.as_ref()?;
        let holder = current.filter(|c| c.status.is_closed() && self.looked_at != Some(c.run_id))?;
        self.looked_at = Some(holder.run_id);
        self.looking = Some(holder);
        Some(holder)
    }
}

impl Node {
    /// Whether the start waits for a look at the run that holds the workflow id.
    pub(super) fn looks_at_holder(&mut self, ticket: u64, current: Option<CurrentRun>) -> bool {
        let holder = self.starts.get_mut(&ticket).and_then(|job| job.next_look(current));
        if let Some(CurrentRun { run_id: run, .. }) = holder {
            self.out.push(Output::LoadForStart { ticket, run });
        }
        holder.is_some()
    }

    /// The history of the run that holds the workflow id, which has ended.
    pub(super) fn looked_at_holder(
        &mut self,
        ticket: u64,
        holder: CurrentRun,
        events: Result<Vec<Event>, store::Error>,
    ) {
        let folded = events.and_then(|events| {
            Run::fold(holder.run_id, &events).map_err(|e| store::Error::Corrupt(e.to_string()))
        });
        let run = match folded {
            Ok(run) => run,
            Err(error) => return self.finish_start(ticket, Err(error.into())),
        };
        let first = self.starts.get(&ticket).and_then(|job| job.start.first.as_ref());
        if let (Some(first), Some(run)) = (first, run)
            && first.was_taken_by(&run)
        {
            let run_id = holder.run_id;
            return self.finish_start(ticket, Ok(Started { run_id, started: false }));
        }
        self.decide_start(ticket, Some(holder), None);
    }

    /// What comes with the start, as events of the run that starts.
    pub(super) fn receive_first(&self, ticket: u64, run: &mut Run, events: &mut Vec<Event>) {
        let Some(started) = events.first() else { return };
        let (id, actor) = (started.command_id, started.actor.clone());
        let first = self.starts.get(&ticket).and_then(|job| job.start.first.as_ref());
        let Some(command) = first.and_then(|first| first.command(id, actor)) else { return };
        // The start was refused if a run could refuse this one.
        let decided = everstep_core::decide(run, &command, self.now).map(|d| d.events).unwrap_or_default();
        for event in decided {
            if run.apply(&event).is_ok() {
                events.push(event);
            }
        }
    }
}
