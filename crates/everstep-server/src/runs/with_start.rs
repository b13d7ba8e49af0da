//! Starts that bring something along: a signal or an update, for the run that starts or for the one that is there.

use everstep_core::{CommandBody, ConflictPolicy, FirstMessage, Payload, Rejection, StartRun, TraceContext};
use everstep_engine::{Error, RunSelector, Started, Update};
use everstep_proto::api;
use tokio::time::Instant;
use tonic::Status;

use super::RunApi;
use super::request::{self, RunCall};
use super::update::{Wanted, accept, answered, check_wait};
use crate::check::Check;
use crate::{reason, status};

/// Where the fields of the start stand.
const OUTER: &str = "start.";

/// Runs that may end one after the other while one is looked for.
const RACES_MAX: u32 = 5;

/// Reads the start, which has to leave an open run alone.
fn start(check: &mut Check, wire: Option<api::StartRunRequest>, trace: TraceContext) -> StartRun {
    let Some(wire) = wire else {
        check.refuse("start", reason::INVALID_ARGUMENT, "must say what to start");
        return StartRun::default();
    };
    check.within("start", |check| {
        if wire.workflow_id.is_empty() {
            let problem = "must be given: it is what the run is found by";
            check.refuse("workflow_id", reason::INVALID_ARGUMENT, problem);
        }
        let use_existing = [api::ConflictPolicy::Unspecified, api::ConflictPolicy::UseExisting];
        let known = api::ConflictPolicy::try_from(wire.conflict_policy);
        if known.is_ok_and(|policy| !use_existing.contains(&policy)) {
            check.refuse("conflict_policy", reason::INVALID_ARGUMENT, "must be unset or USE_EXISTING");
        }
        let (start, _) = request::start(check, wire, trace);
        StartRun { conflict: ConflictPolicy::UseExisting, ..start }
    })
}

/// A request to the run that a start led to.
fn call_of(start: &StartRun, started: &Started, request_id: &str, kind: &'static str) -> RunCall {
    let run = RunSelector {
        namespace: start.namespace.clone(),
        run_id: Some(started.run_id),
        workflow_id: Some(start.workflow_id.clone()),
    };
    RunCall::new(run, request_id.to_owned(), start.identity.clone(), kind)
}

/// True when the run that was found has ended since: there may be another one, or room for one.
fn has_ended(started: &Started, error: &Error) -> bool {
    !started.started && matches!(error, Error::Rejected(Rejection::RunClosed { .. }))
}

/// See `SignalWithStartRun` in the contract.
pub(super) async fn signal(
    runs: &RunApi,
    request: api::SignalWithStartRunRequest,
    trace: TraceContext,
) -> Result<api::SignalWithStartRunResponse, Status> {
    let api::SignalWithStartRunRequest { start: wire, name, signal_input } = request;
    let mut check = Check::default();
    let mut start = start(&mut check, wire, trace);
    let name = check.name("name", name);
    let input = check.payload("signal_input", signal_input);
    check.finish()?;
    runs.declarations.check_start(&runs.engine, OUTER, &start).await?;
    let signal_id = start.request_id.clone();
    start.first =
        Some(FirstMessage::Signal { name: name.clone(), signal_id: signal_id.clone(), input: input.clone() });
    let mut races = 0;
    loop {
        let started = runs.engine.start_run(start.clone()).await.map_err(|e| status::of_engine(&e))?;
        let sent = if started.started {
            Ok(())
        } else {
            // The run may have it already: the same signal again is none.
            let call = call_of(&start, &started, &signal_id, "signal");
            let id = call.command_id(started.run_id);
            let (name, signal_id, input) = (name.clone(), signal_id.clone(), input.clone());
            let body = CommandBody::Signal { name, signal_id, input };
            runs.engine.command(started.run_id, id, call.identity, body).await
        };
        match sent {
            Ok(()) => {
                let Started { run_id, started } = started;
                let (run_id, workflow_id) = (run_id.to_string(), start.workflow_id);
                return Ok(api::SignalWithStartRunResponse { run_id, workflow_id, started });
            }
            Err(error) if has_ended(&started, &error) && races < RACES_MAX => races += 1,
            Err(error) => return Err(status::of_engine(&error)),
        }
    }
}

/// See `UpdateWithStartRun` in the contract.
pub(super) async fn update(
    runs: &RunApi,
    request: api::UpdateWithStartRunRequest,
    trace: TraceContext,
    deadline: Option<Instant>,
) -> Result<api::UpdateWithStartRunResponse, Status> {
    let api::UpdateWithStartRunRequest { start: wire, name, input, update_id, wait_for, wait } = request;
    let mut check = Check::default();
    let mut start = start(&mut check, wire, trace);
    let name = check.name("name", name);
    let input: Payload = check.payload("input", input);
    let update_id =
        if update_id.is_empty() { start.request_id.clone() } else { check.name("update_id", update_id) };
    check_wait(&mut check, wait);
    let wanted = Wanted::read(&mut check, wait_for, wait, deadline);
    check.finish()?;
    runs.declarations.check_start(&runs.engine, OUTER, &start).await?;
    start.first = Some(FirstMessage::Update { update_id: update_id.clone() });
    let mut races = 0;
    let (started, accepted) = loop {
        let started = runs.engine.start_run(start.clone()).await.map_err(|e| status::of_engine(&e))?;
        let call = call_of(&start, &started, &update_id, "update");
        let command_id = call.command_id(started.run_id);
        let (update_id, name, input) = (update_id.clone(), name.clone(), input.clone());
        let update = Update { update_id, name, input, command_id, identity: call.identity };
        match accept(runs, started.run_id, update, wanted).await {
            Ok(accepted) => break (started, accepted),
            Err(error) if has_ended(&started, &error) && races < RACES_MAX => races += 1,
            Err(error) => return Err(status::of_engine(&error)),
        }
    };
    let update = answered(runs, (started.run_id, update_id), accepted, wanted).await?;
    Ok(api::UpdateWithStartRunResponse {
        run_id: started.run_id.to_string(),
        workflow_id: start.workflow_id,
        started: started.started,
        update: Some(update),
    })
}
