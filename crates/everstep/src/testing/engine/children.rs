//! What runs have to hear of each other: told in order, sometimes twice, as a node and the sweep do.

use everstep_core::{
    Actor, ChildClosed, ChildOutcome, ChildStart, Command, CommandBody, CommandId, CurrentRun,
    ExternalTarget, Failure, KnownRequest, Outbound, Run, RunId, Seq, StartDecision, ToRun, WriteBasis,
    decide_start, start_body_hash,
};

use super::{Coming, Engine, Slot, later};
use crate::testing::Error;

/// How long until something is told again that came too early.
const AGAIN_US: u64 = 1_000_000;

impl Engine {
    /// Others have to hear of an event of a run: after all that they had to hear of it before.
    pub(super) fn plan_telling(&mut self, run: RunId, seq: Seq) {
        let at = later(self.now, self.faults.delay());
        let at = at.max(self.telling.get(&run).map_or(at, |last| *last));
        self.telling.insert(run, at);
        if let Some(later_by) = self.faults.again() {
            self.at(later(at, later_by), Coming::Tell { run, seq });
        }
        self.at(at, Coming::Tell { run, seq });
    }

    /// Tells others of an event of a run.
    pub(super) fn tell_others(&mut self, run: RunId, seq: Seq) -> Result<(), Error> {
        let Some(slot) = self.runs.get(&run) else { return Ok(()) };
        let Some(event) = slot.history.iter().find(|event| event.seq == seq) else { return Ok(()) };
        for outbound in slot.run.outbound(event) {
            match outbound {
                Outbound::Start(child) => self.start_child(run, *child)?,
                Outbound::ToRun(to) => self.tell_run((run, seq), *to)?,
            }
        }
        Ok(())
    }

    fn start_child(&mut self, parent: RunId, child: ChildStart) -> Result<(), Error> {
        let ChildStart { child: op, scheduled, start, run_id, seed, report } = child;
        self.check_workflow(&start.workflow_type)?;
        let holder = self.runs.values().rev().find(|s| s.run.start().workflow_id == start.workflow_id);
        let current = holder.map(|s| CurrentRun { run_id: s.run.id(), status: s.run.status() });
        let body_hash = start_body_hash(&start);
        let known = self.runs.contains_key(&run_id).then_some(KnownRequest { run_id, body_hash });
        let body = match decide_start(&start, (run_id, seed), current, known, self.time()) {
            Ok(StartDecision::Existing(_)) => CommandBody::ChildStarted { child: op, scheduled },
            Ok(StartDecision::Start { event, .. }) => {
                let run = Run::begin(run_id, &event)?;
                let writes = WriteBasis::NEW.writes(&run, std::slice::from_ref(&*event));
                let slot = Slot { run, history: vec![*event], held: None, stalled: None, cut_off: None };
                self.runs.insert(run_id, slot);
                self.follow(run_id, writes);
                CommandBody::ChildStarted { child: op, scheduled }
            }
            Err(rejection) => CommandBody::ChildClosed(Box::new(ChildClosed {
                child: op,
                scheduled,
                run_id,
                outcome: ChildOutcome::NotStarted(rejection.to_failure()),
            })),
        };
        if report || matches!(body, CommandBody::ChildClosed(_)) {
            self.reply(parent, scheduled, body)?;
        }
        Ok(())
    }

    fn tell_run(&mut self, (source, seq): (RunId, Seq), to: ToRun) -> Result<(), Error> {
        let target = match &to.target {
            ExternalTarget::Run(run) => Some(*run),
            ExternalTarget::Workflow(id) => {
                let held = self.runs.values().filter(|slot| slot.run.start().workflow_id == *id);
                held.map(|slot| slot.run.id()).max()
            }
        };
        let told = match target.filter(|run| self.runs.contains_key(run)) {
            Some(run) => self.request(self.latest(run), &to.command),
            None if to.early => {
                self.after(AGAIN_US, Coming::Tell { run: source, seq });
                return Ok(());
            }
            None => Err(Error::UnknownRun(target.unwrap_or(source))),
        };
        let failure = match told {
            Ok(()) => None,
            Err(Error::Refused(rejection)) => Some(rejection.to_failure()),
            Err(Error::UnknownRun(_)) => {
                Some(Failure::new("RunNotFound", "no such run in the namespace").non_retryable())
            }
            Err(error) => return Err(error),
        };
        match to.reply {
            Some((op, requested)) => {
                self.reply(source, seq, CommandBody::ResolveExternal { op, requested, failure })
            }
            None => Ok(()),
        }
    }

    fn reply(&mut self, run: RunId, seq: Seq, body: CommandBody) -> Result<(), Error> {
        let id = CommandId::derived(&[b"reply", run.as_bytes(), &seq.to_be_bytes()]);
        self.request(run, &Command { id, actor: Actor::System, body })
    }
}
