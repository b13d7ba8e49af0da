//! What ends a claim without its owner's consent: its session is closed, or it sent a commit that was refused.
//!
//! A worker whose commit is refused forgets the run, so nobody would go on with it while its session lives. And what it
//! has sent since stands on what was refused. So the claim ends with the refusal, in the same decision: what follows
//! under it is fenced, and the run goes to a worker anew. When that comes to nothing again and again, the run is
//! blocked, and says why.

use everstep_core::{
    Actor, Command, CommandBody, Detach, Epoch, Rejection, Run, RunId, SessionId, WorkerCommit,
};

use super::{Batch, Job, apply_decision};
use crate::node::Node;

/// Whether the sender of a commit forgets the run.
pub(super) fn evicts(refused: &Rejection) -> bool {
    !matches!(refused, Rejection::UnseenEvents { .. })
}

impl Node {
    /// Ends a claim.
    pub(super) fn detach(
        &mut self,
        run: &mut Run,
        session: SessionId,
        refused: Option<String>,
        batch: &mut Batch,
    ) -> Result<(), Rejection> {
        let body = CommandBody::Detach(Detach { session, refused });
        let command = Command { id: self.ids.command_id(), actor: Actor::System, body };
        apply_decision(run, &command, self.now, batch)
    }

    /// The owner's commit is refused.
    pub(super) fn give_back(
        &mut self,
        run: &mut Run,
        (link, commit): (u64, &WorkerCommit),
        refused: &Rejection,
        batch: &mut Batch,
    ) {
        let Some(session) = self.sessions.get(&link).map(|session| session.id) else { return };
        let owns = run.owner().is_some_and(|owner| owner.session == session);
        if evicts(refused) && owns && commit.epoch == run.epoch() {
            // It was refused for what it said, and a detach says nothing that could be refused.
            let _ = self.detach(run, session, Some(refused.to_string()), batch);
        }
    }

    /// Tells a worker that its commit is refused, before it is told what became of the run: news of a later claim
    /// acknowledge whatever came before.
    pub(super) fn answer_refused(&mut self, run_id: RunId, jobs: &mut Vec<(Job, Result<(), Rejection>)>) {
        let is_refused = |(job, result): &(Job, Result<(), Rejection>)| matches!((job, result), (Job::Commit { .. }, Err(refused)) if evicts(refused));
        if jobs.iter().any(is_refused) {
            let (refused, others) = std::mem::take(jobs).into_iter().partition(is_refused);
            *jobs = others;
            self.answer(run_id, refused);
        }
    }

    /// What gives the run back that this stream holds under that epoch, when a commit is refused unread.
    pub(super) fn lose_refused(&self, run_id: RunId, held: (u64, Epoch), refused: &Rejection) -> Option<Job> {
        let told = self.slots.get(&run_id)?.told;
        let session = self.sessions.get(&held.0)?.id;
        let lose = || Job::Lose { session, refused: Some(refused.to_string()), verified: false };
        (told == Some(held)).then(lose)
    }
}
