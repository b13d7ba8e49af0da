//! Queued steps of one run: what became of their attempts, and who hears of it.

use everstep_core::{Actor, Command, CommandBody, Rejection, Run, RunId, Write};

use super::{Batch, apply_decision};
use crate::node::Node;
use crate::node::steps::StepJob;

impl Node {
    pub(super) fn decide_step(
        &mut self,
        run: &mut Run,
        job: &StepJob,
        batch: &mut Batch,
    ) -> Result<(), Rejection> {
        let (body, actor) = match job {
            StepJob::Finish(finish) => (finish.body(run)?, Actor::Worker(finish.identity.clone())),
            StepJob::Expire { step, attempt, timeout } => {
                let (step, attempt, timeout) = (*step, *attempt, *timeout);
                (CommandBody::ExpireStep { step, attempt, timeout }, Actor::System)
            }
            StepJob::Lose { step, attempt } => {
                (CommandBody::LoseStep { step: *step, attempt: *attempt }, Actor::System)
            }
        };
        let command = Command { id: self.ids.command_id(), actor, body };
        apply_decision(run, &command, self.now, batch)
    }

    /// Tells workers and other nodes what an append changed about queued steps.
    pub(super) fn announce_steps(&mut self, run_id: RunId, writes: &[Write]) {
        for write in writes {
            match write {
                Write::StepTaskSet(task) => {
                    let run = self.slots.get(&run_id).and_then(|slot| slot.run.as_ref());
                    let trace = run.map(|run| run.start().trace.of_run(run_id)).unwrap_or_default();
                    self.step_task_set(run_id, task, trace);
                }
                Write::StepTaskDeleted(step) => self.step_tasks_gone(run_id, Some(*step)),
                Write::StepTasksCleared => self.step_tasks_gone(run_id, None),
                _ => {}
            }
        }
    }
}
