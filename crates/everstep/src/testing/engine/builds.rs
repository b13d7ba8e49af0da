//! The builds whose workers are there: the code that each has, and the runs that it may have.

use std::collections::BTreeMap;

use everstep_core::{Attach, Run, RunId, RunStatus, SessionId, WorkerInfo};

use super::{Coming, Engine, IDENTITY};
use crate::machine::WorkflowFactory;
use crate::testing::Error;
use crate::testing::faults::Death;

/// The build of workers that nobody has named.
const FIRST: &str = "test";

/// Code of workers that are deployed together.
struct Build {
    id: String,
    workflows: BTreeMap<String, Hosted>,
    /// Builds whose runs it goes on with.
    continues: Vec<String>,
    /// Its workers are there.
    up: bool,
}

/// A workflow as a build has it.
struct Hosted {
    factory: WorkflowFactory,
    /// Its runs stay with the build.
    pinned: bool,
}

/// Every build of an environment, the newest last.
pub(in crate::testing) struct Builds(Vec<Build>);

impl Default for Builds {
    fn default() -> Self {
        Self(vec![Build::new(FIRST.to_owned())])
    }
}

impl Build {
    fn new(id: String) -> Self {
        Self { id, workflows: BTreeMap::new(), continues: Vec::new(), up: true }
    }

    /// How it would claim a run; `None` when it may not, or could not go on with it.
    fn claim(&self, run: &Run, session: SessionId) -> Option<Attach> {
        let hosted = self.workflows.get(&run.start().workflow_type).filter(|_| self.up)?;
        let stopped_it = run.status() == RunStatus::Blocked && run.build_id() == self.id;
        let own = run.pin().is_none_or(|pin| pin == self.id || self.continues.iter().any(|c| c == pin));
        let worker = WorkerInfo { identity: IDENTITY.to_owned(), build_id: self.id.clone() };
        let (pinned, compatible) = (hosted.pinned, self.continues.clone());
        (own && !stopped_it).then_some(Attach { session, worker, pinned, compatible })
    }
}

impl Builds {
    /// The names of all workflows that any build has.
    pub(in crate::testing) fn types(&self) -> Vec<&str> {
        let mut types: Vec<&str> =
            self.0.iter().flat_map(|build| build.workflows.keys()).map(String::as_str).collect();
        types.sort_unstable();
        types.dedup();
        types
    }

    /// The builds, the newest last.
    pub(in crate::testing) fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|build| build.id.as_str())
    }

    /// Gives the newest build another name.
    pub(in crate::testing) fn rename(&mut self, id: String) {
        if let Some(newest) = self.0.last_mut() {
            newest.id = id;
        }
    }

    /// A workflow of the newest build.
    pub(in crate::testing) fn host(&mut self, name: String, factory: WorkflowFactory, pinned: bool) {
        if let Some(newest) = self.0.last_mut() {
            newest.workflows.insert(name, Hosted { factory, pinned });
        }
    }

    /// The newest build goes on with the runs of another one.
    pub(in crate::testing) fn continues(&mut self, id: String) {
        if let Some(newest) = self.0.last_mut() {
            newest.continues.push(id);
        }
    }

    /// The code that the run's next worker has, or its last one had: what is asked, and what its history is held
    /// against.
    pub(in crate::testing) fn code_of(&self, run: &Run) -> Option<&WorkflowFactory> {
        let name = &run.start().workflow_type;
        let last = self.0.iter().find(|build| build.id == run.build_id());
        let build = last.into_iter().chain(self.0.iter().rev()).find(|b| b.workflows.contains_key(name))?;
        build.workflows.get(name).map(|hosted| &hosted.factory)
    }

    fn code(&self, build: &str, name: &str) -> Option<&WorkflowFactory> {
        let build = self.0.iter().find(|b| b.id == build)?;
        build.workflows.get(name).map(|hosted| &hosted.factory)
    }
}

impl Engine {
    /// How a worker would claim the run now, and its code: of the builds that may have it the newest, or under a
    /// simulation any.
    pub(super) fn suitable(&mut self, run: RunId) -> Result<Option<(Attach, WorkflowFactory)>, Error> {
        let session = self.session_id();
        let state = self.run(run)?;
        let mut may: Vec<Attach> =
            self.builds.0.iter().rev().filter_map(|b| b.claim(state, session)).collect();
        if may.is_empty() {
            return Ok(None);
        }
        let name = state.start().workflow_type.clone();
        let attach = may.swap_remove(self.faults.pick(may.len()));
        let code = self.builds.code(&attach.worker.build_id, &name).cloned();
        Ok(code.map(|code| (attach, code)))
    }

    /// The build that the run waits for because no build that is there may have it; `*` for any that has its workflow.
    pub(in crate::testing) fn waits_for_build(&self, run: RunId) -> Result<Option<String>, Error> {
        let state = self.run(run)?;
        let anybody = SessionId::from_uuid(uuid::Uuid::nil());
        if !state.needs_worker() || self.builds.0.iter().any(|build| build.claim(state, anybody).is_some()) {
            return Ok(None);
        }
        Ok(Some(state.pin().unwrap_or("*").to_owned()))
    }

    /// Workers of a build come, beside those that are there; what is registered from now on is its code. Runs that waited
    /// for it are looked for.
    pub(in crate::testing) fn deploy(&mut self, id: String) {
        let known = self.builds.0.iter().position(|build| build.id == id).map(|i| self.builds.0.remove(i));
        let build = known.map_or_else(|| Build::new(id), |build| Build { up: true, ..build });
        self.builds.0.push(build);
        self.look_for_runs();
    }

    /// The workers of a build go. What steps of theirs had begun is not recorded.
    pub(in crate::testing) fn retire(&mut self, id: &str) -> Result<(), Error> {
        let known = self.builds.ids().collect::<Vec<_>>().join(", ");
        let Some(build) = self.builds.0.iter_mut().find(|build| build.id == id) else {
            return Err(Error::UnknownBuild { id: id.to_owned(), known });
        };
        build.up = false;
        let held = self.runs.iter().filter(|(_, slot)| slot.held.as_ref().is_some_and(|h| h.build_id == id));
        let held: Vec<RunId> = held.map(|(run, _)| *run).collect();
        for run in held {
            self.die(run, Death::Killed, "because its build is retired");
        }
        Ok(())
    }

    /// A build may go on with the runs of another one, as an operator says.
    pub(in crate::testing) fn allow_build(&mut self, id: &str, continues: &str) -> Result<(), Error> {
        let known = self.builds.ids().collect::<Vec<_>>().join(", ");
        let Some(build) = self.builds.0.iter_mut().find(|build| build.id == id) else {
            return Err(Error::UnknownBuild { id: id.to_owned(), known });
        };
        build.continues.push(continues.to_owned());
        self.look_for_runs();
        Ok(())
    }

    /// Runs that nobody has are offered again.
    fn look_for_runs(&mut self) {
        let open = self.runs.iter().filter(|(_, slot)| slot.held.is_none() && !slot.run.status().is_closed());
        let open: Vec<RunId> = open.map(|(run, _)| *run).collect();
        for run in open {
            let delay = self.faults.delay();
            self.after(delay, Coming::Claim { run });
        }
    }
}
