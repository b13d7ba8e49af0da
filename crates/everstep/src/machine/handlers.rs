//! Questions to a workflow between two events: nothing that is asked here moves it.

#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use everstep_core::replay::OpKind;
use everstep_core::{Failure, OpId, Payload};
use serde_json::{Value, json};

use super::{Machine, panic_message};
use crate::ctx::{CtxMisuse, OpState, QueryFn};

/// What the code waits for: built in.
const WAITS: &str = "everstep.waits";

impl Machine {
    /// The handler of a query, for [`answer`]: it reads what the workflow shows, so nothing must be applied before it
    /// is done.
    ///
    /// # Errors
    /// A failure of kind `UnknownQuery` that names those that there are.
    pub(crate) fn query(&self, name: &str) -> Result<QueryFn, Failure> {
        if name == WAITS {
            let waits = Payload::json(self.waits().to_string());
            return Ok(Arc::new(move |_| Ok(waits.clone())));
        }
        let state = self.shared.lock();
        if let Some(handler) = state.queries.0.get(name) {
            return Ok(Arc::clone(handler));
        }
        let known = state.queries.0.keys().map(String::as_str).chain([WAITS]).collect::<Vec<_>>().join(", ");
        Err(Failure::new("UnknownQuery", format!("there is no query '{name}'; this run has: {known}")))
    }

    /// Every operation that the code awaits and has no end, in the order in which it was built.
    fn waits(&self) -> Value {
        let state = self.shared.lock();
        let entry = |(index, op): (usize, &OpState)| {
            let id = OpId(u32::try_from(index + 1).unwrap_or(u32::MAX));
            let source = state.replay.source(id).map(ToString::to_string).unwrap_or_default();
            match op {
                OpState::Step(step) if step.requested && step.outcome.is_none() && !step.dropped => {
                    Some(json!({
                        "kind": "step", "id": id.0, "name": step.name, "attempts": step.recorded, "source": source,
                    }))
                }
                OpState::Timer(timer) if timer.requested.is_some() && !timer.fired && !timer.canceled => {
                    Some(json!({
                        "kind": "timer", "id": id.0, "seconds": timer.delay.as_secs_f64(), "source": source,
                    }))
                }
                OpState::Command(op) if op.is_awaited() => {
                    let (kind, name) = match state.replay.kind(id)? {
                        OpKind::Queued(name) => ("queued step", name.as_str()),
                        OpKind::Child(workflow_type) => ("child", workflow_type.as_str()),
                        OpKind::External => ("external", ""),
                        OpKind::Step(_) | OpKind::Timer | OpKind::Upsert => return None,
                    };
                    Some(json!({"kind": kind, "id": id.0, "name": name, "source": source}))
                }
                OpState::Step(_) | OpState::Timer(_) | OpState::Command(_) => None,
            }
        };
        let signals = state
            .signal_waits
            .iter()
            .map(|(name, source)| json!({"kind": "signal", "name": name, "source": source.to_string()}));
        let conditions =
            state.waits.iter().map(|source| json!({"kind": "condition", "source": source.to_string()}));
        state.ops.iter().enumerate().filter_map(entry).chain(signals).chain(conditions).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A handler may hold the ctx, which holds the handlers.
        let (queries, updates) = {
            let mut state = self.shared.lock();
            (std::mem::take(&mut state.queries), std::mem::take(&mut state.update_handlers))
        };
        drop((queries, updates));
    }
}

/// Runs a handler. Whatever it does, the run is not harmed.
///
/// # Errors
/// What the handler says; kind `Panic` when it panics, and `CtxMisuse` when it does more than look.
pub(crate) fn answer(handler: &QueryFn, input: Payload) -> Result<Payload, Failure> {
    catch_unwind(AssertUnwindSafe(|| handler(input))).unwrap_or_else(|panic| {
        Err(match panic.downcast_ref::<CtxMisuse>() {
            Some(misuse) => Failure::new("CtxMisuse", misuse.to_string()),
            None => Failure::new("Panic", format!("the query's handler {}", panic_message(&*panic))),
        })
    })
}
