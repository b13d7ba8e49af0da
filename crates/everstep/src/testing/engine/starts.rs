//! Starts of runs, and what comes with them.

use everstep_core::{
    CommandBody, ConflictPolicy, CurrentRun, Duration, FirstMessage, KnownRequest, Rejection, ReusePolicy,
    Run, RunId, StartDecision, StartRun, TraceContext, WriteBasis, decide_start, start_body_hash,
};

use super::{Coming, Engine, IDENTITY, NAMESPACE, QUEUE, Slot, later};
use crate::testing::Error;
use crate::testing::scenario::{Act, Scenario};

impl Engine {
    /// Starts a run; what its callers do later is on its way then.
    pub(in crate::testing) fn start(&mut self, scenario: Scenario) -> Result<RunId, Error> {
        self.start_with(scenario, None)
    }

    /// Starts a run that has a message from its first moment, or finds the open run of the workflow id, which is sent
    /// it then.
    pub(in crate::testing) fn start_with(
        &mut self,
        mut scenario: Scenario,
        first: Option<FirstMessage>,
    ) -> Result<RunId, Error> {
        self.check_workflow(&scenario.workflow_type)?;
        let (run_id, acts) = (self.run_id(), std::mem::take(&mut scenario.acts));
        let request = self.request_of(scenario, first)?;
        let holder = self.runs.values().rev().find(|s| s.run.start().workflow_id == request.workflow_id);
        // A repeat of a call that found this run open.
        let taken = holder.filter(|s| request.first.as_ref().is_some_and(|first| first.was_taken_by(&s.run)));
        if let Some(slot) = taken {
            return self.found(slot.run.id(), &request);
        }
        let current = holder.map(|s| CurrentRun { run_id: s.run.id(), status: s.run.status() });
        let key = (request.workflow_id.clone(), request.request_id.clone());
        let known = self.starts.get(&key).copied();
        let seed = u64::from_be_bytes(*run_id.uuid().as_bytes().last_chunk().unwrap_or(&[0; 8]));
        match decide_start(&request, (run_id, seed), current, known, self.time())? {
            StartDecision::Existing(run) => return self.found(run, &request),
            StartDecision::Start { event, .. } => {
                let run = Run::begin(run_id, &event)?;
                let writes = WriteBasis::NEW.writes(&run, std::slice::from_ref(&*event));
                let slot = Slot { run, history: vec![*event], held: None, stalled: None, cut_off: None };
                self.runs.insert(run_id, slot);
                self.starts.insert(key, KnownRequest { run_id, body_hash: start_body_hash(&request) });
                self.send_first(run_id, &request)?;
                self.follow(run_id, writes);
            }
        }
        self.plan(run_id, acts)?;
        Ok(run_id)
    }

    fn request_of(&mut self, scenario: Scenario, first: Option<FirstMessage>) -> Result<StartRun, Error> {
        let Scenario {
            workflow_type,
            input,
            workflow_id,
            request_id,
            run_timeout,
            start_delay,
            retry,
            acts: _,
        } = scenario;
        let conflict = if first.is_some() { ConflictPolicy::UseExisting } else { ConflictPolicy::default() };
        if first.is_some() && workflow_id.is_none() {
            let problem = "must be given: it is what the run is found by".to_owned();
            return Err(Rejection::InvalidArgument { field: "workflow_id", problem }.into());
        }
        Ok(StartRun {
            namespace: NAMESPACE.to_owned(),
            workflow_id: workflow_id.unwrap_or_else(|| format!("test-{}", self.made)),
            workflow_type,
            task_queue: QUEUE.to_owned(),
            input: input.map_err(Error::Payload)?,
            request_id: request_id.unwrap_or_else(|| format!("start-{}", self.made)),
            run_timeout: run_timeout.map(Duration::from),
            start_delay: start_delay.map(Duration::from),
            retry,
            reuse: ReusePolicy::default(),
            conflict,
            trace: TraceContext::default(),
            identity: IDENTITY.to_owned(),
            first,
            ..StartRun::default()
        })
    }

    /// The start has found a run that was there: it hears what came along, unless it has.
    fn found(&mut self, run: RunId, request: &StartRun) -> Result<RunId, Error> {
        self.send_first(run, request)?;
        Ok(run)
    }

    fn send_first(&mut self, run: RunId, request: &StartRun) -> Result<(), Error> {
        let Some(FirstMessage::Signal { name, signal_id, input }) = request.first.clone() else {
            return Ok(());
        };
        let command = self.command(CommandBody::Signal { name, signal_id, input });
        self.request(run, &command)
    }

    pub(super) fn check_workflow(&self, workflow_type: &str) -> Result<(), Error> {
        let types = self.builds.types();
        if types.contains(&workflow_type) {
            return Ok(());
        }
        Err(Error::UnknownWorkflow { name: workflow_type.to_owned(), known: types.join(", ") })
    }

    /// Puts what a run's callers will do on its way. One caller waits for the answer before its next message.
    fn plan(&mut self, run: RunId, mut acts: Vec<(std::time::Duration, Act)>) -> Result<(), Error> {
        acts.sort_by_key(|(delay, _)| *delay);
        let start = self.now;
        let (mut wanted, mut earliest, mut arrived) = (None, start, start);
        for (delay, act) in acts {
            let body = match act {
                Act::Signal { name, input } => {
                    let input = input.map_err(Error::Payload)?;
                    CommandBody::Signal { name, signal_id: self.new_id().to_string(), input }
                }
                Act::Cancel { reason } => CommandBody::Cancel { reason },
            };
            let command = self.command(body);
            if wanted.replace(delay) != Some(delay) {
                earliest = arrived;
            }
            let at = later(start, Duration::from(delay).as_micros() + self.faults.delay()).max(earliest);
            arrived = arrived.max(at + 1);
            if let Some(later_by) = self.faults.again() {
                self.at(later(at, later_by), Coming::Asked { run, command: command.clone() });
            }
            self.at(at, Coming::Asked { run, command });
        }
        Ok(())
    }
}
