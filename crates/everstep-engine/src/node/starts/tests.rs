//! What the caller of a start hears when the store fails again and again.

use everstep_core::{
    ConflictPolicy, Duration, NodeId, Payload, ReusePolicy, StartRun, Timestamp, TraceContext,
};
use everstep_store::{Error as StoreError, Verdict};
use uuid::Uuid;

use crate::node::{Input, Node, NodeConfig, Output};
use crate::{Error, Started};

fn request() -> StartRun {
    StartRun {
        namespace: "default".into(),
        workflow_id: "w".into(),
        workflow_type: "t".into(),
        task_queue: "default".into(),
        input: Payload::json("1"),
        request_id: "r".into(),
        run_timeout: None,
        reuse: ReusePolicy::default(),
        conflict: ConflictPolicy::default(),
        trace: TraceContext::default(),
        identity: "tester".into(),
        ..StartRun::default()
    }
}

/// What a caller is answered whose append comes to these errors, and whether its run is looked for.
fn started(errors: Vec<StoreError>) -> (Option<Result<Started, Error>>, bool) {
    let node_id = NodeId::from_uuid(Uuid::from_u128(1));
    let (lease, shared, hints_shared, relays, seed) = (Duration::from_secs(10), false, false, false, 1);
    let mut node = Node::new(NodeConfig { node_id, lease, shared, hints_shared, relays, seed });
    let now = Timestamp::from_micros(1_700_000_000_000_000);
    let mut outputs = Vec::new();
    node.step(Input::Start { request: 1, start: Box::new(request()) }, now, &mut outputs);
    let (mut answer, mut looks) = (None, false);
    for error in errors {
        let ticket = outputs.iter().find_map(|output| match output {
            Output::Append { ticket, .. } => Some(*ticket),
            _ => None,
        });
        let Some(ticket) = ticket else { break };
        outputs.clear();
        node.step(Input::Appended { ticket, verdict: Verdict::Failed(error) }, now, &mut outputs);
        looks |= outputs.iter().any(|output| matches!(output, Output::Load { .. }));
        for output in outputs.iter_mut() {
            if let Output::Started { result, .. } = output {
                let result = std::mem::replace(result, Err(Error::Stopping));
                assert!(answer.replace(result).is_none(), "answered twice");
            }
        }
    }
    (answer, looks)
}

#[test]
fn nothing_was_written_is_said_only_when_no_try_may_have_been() {
    let gone = || StoreError::Unavailable("gone".into());
    let unknown = || StoreError::OutcomeUnknown("cut".into());
    let (answer, _) = started((0..8).map(|_| gone()).collect());
    assert!(matches!(answer, Some(Err(Error::Store(StoreError::Unavailable(_))))), "{answer:?}");

    let (answer, looks) = started(std::iter::once(unknown()).chain((0..7).map(|_| gone())).collect());
    assert!(matches!(answer, Some(Err(Error::Store(StoreError::OutcomeUnknown(_))))), "{answer:?}");
    assert!(looks, "the first try may have started the run, for a worker that is connected here");

    let (answer, looks) = started(vec![unknown(), StoreError::Refused("bad".into())]);
    assert!(matches!(answer, Some(Err(Error::Store(StoreError::OutcomeUnknown(_))))), "{answer:?}");
    assert!(looks);
}
