//! Runs that stay with the build that has them: a worker that pins a type of workflow promises to be there for its
//! runs, and other code has to say that it continues that build.

use super::Run;
use crate::{Attach, EventBody, QueueKey, Rejection, TaskRow};

impl Run {
    /// The build that the run belongs to; `None` when code of any build may try.
    pub fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    /// The code that had it last; empty before the first worker.
    pub fn build_id(&self) -> &str {
        &self.build_id
    }

    /// Its task, when it needs a worker.
    pub fn task(&self) -> TaskRow {
        TaskRow {
            queue: QueueKey {
                namespace: self.start.namespace.clone(),
                task_queue: self.start.task_queue.clone(),
            },
            workflow_type: self.start.workflow_type.clone(),
            build_id: self.pin.clone().unwrap_or_default(),
        }
    }

    /// The last owner decides: who pins its runs keeps them, who does not lets them go.
    pub(super) fn note_pin(&mut self, body: &EventBody) {
        if let EventBody::WorkerAttached { worker, pinned, .. } = body {
            self.pin = pinned.then(|| worker.build_id.clone());
        }
    }
}

impl TaskRow {
    /// A task for any worker of a queue, as rows of releases are that said no more.
    pub fn of_queue(queue: QueueKey) -> Self {
        Self { queue, workflow_type: String::new(), build_id: String::new() }
    }
}

/// Refuses code that neither is the build that the run belongs to nor continues it.
pub(super) fn check(run: &Run, attach: &Attach) -> Result<(), Rejection> {
    match &run.pin {
        Some(wants) if attach.worker.build_id != *wants && !attach.compatible.contains(wants) => {
            Err(Rejection::WrongBuild { wants: wants.clone(), has: attach.worker.build_id.clone() })
        }
        _ => Ok(()),
    }
}
