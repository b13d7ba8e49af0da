//! Ends that cannot be decided, and looks that are older than the worker they are about.

use super::*;

fn corrupt() -> store::Error {
    store::Error::Corrupt("by hand".to_owned())
}

#[test]
fn an_end_of_a_run_that_cannot_be_read_is_asked_for_again_until_it_is_decided() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[key(1, 1)]);
    bench.said(key(1, 1), completed(), None);
    bench.step(Input::Loaded { run: run(), after: 0, events: Err(corrupt()) });
    bench.wants();
    bench.steps(StepsIn::Look);
    assert_eq!(bench.wants(), ["find"], "not at once");
    bench.now = Timestamp::from_micros(6_000_000);
    bench.steps(StepsIn::Look);
    assert_eq!(bench.wants(), ["ask #1", "find"]);
    // The worker has the end still, and the run has been mended.
    bench.said(key(1, 1), completed(), None);
    bench.loads(history("default", 1));
    bench.commits();
    assert_eq!(bench.wants(), ["load", "StepCompleted", "ack #1 ok"]);
    bench.now = Timestamp::from_micros(60_000_000);
    bench.steps(StepsIn::Look);
    assert!(bench.wants().is_empty(), "nothing is left of it");
}

#[test]
fn an_end_that_the_store_refuses_is_asked_for_again() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[key(1, 1)]);
    bench.said(key(1, 1), completed(), None);
    bench.loads(history("default", 1));
    let ticket = bench.out.iter().find_map(|output| match output {
        Output::Append { ticket, .. } => Some(*ticket),
        _ => None,
    });
    let verdict = Verdict::Failed(store::Error::Refused("by hand".to_owned()));
    bench.step(Input::Appended { ticket: ticket.unwrap(), verdict });
    bench.wants();
    bench.now = Timestamp::from_micros(6_000_000);
    bench.steps(StepsIn::Look);
    assert_eq!(bench.wants(), ["ask #1", "find"]);
    // The attempt is over meanwhile: the look says so, whatever its worker had to say.
    bench.found(Vec::new());
    assert_eq!(bench.wants(), ["gone #1"]);
}

#[test]
fn a_worker_that_has_gone_is_asked_for_nothing() {
    let mut bench = Bench::with_worker();
    bench.claimed(2, &[key(1, 1)]);
    bench.said(key(1, 1), completed(), None);
    bench.step(Input::Loaded { run: run(), after: 0, events: Err(corrupt()) });
    bench.step(Input::Disconnected { link: LINK });
    bench.wants();
    bench.now = Timestamp::from_micros(6_000_000);
    bench.steps(StepsIn::Look);
    assert!(bench.wants().is_empty());
    assert!(bench.node.steps.undecided.is_empty());
}

/// The look of the sweep goes to the store, the worker is given an attempt, loses its stream and comes back with the
/// attempt; then the store's answer to the old look arrives.
#[test]
fn a_look_from_before_a_worker_came_back_says_nothing_of_what_it_holds() {
    let mut bench = Bench::with_worker();
    let session = *bench.node.links.keys().next().unwrap();
    let asked = bench.now;
    bench.steps(StepsIn::Look);
    bench.now = Timestamp::from_micros(1_500_000);
    bench.connect_as(2, Some(session), vec![key(1, 1)]);
    bench.wants();
    let (sessions, rows) = (vec![session], Ok(Vec::new()));
    bench.steps(StepsIn::Found { sessions: sessions.clone(), since: asked, rows });
    assert!(bench.wants().is_empty(), "it waits for the look that its coming back made");
    bench.steps(StepsIn::Found {
        sessions,
        since: asked,
        rows: Err(store::Error::Unavailable("gone".into())),
    });
    assert!(bench.node.links.contains_key(&session), "it need not come again either");
    let row = bench.row(key(1, 1), 1_200_000, false);
    bench.found(vec![row]);
    assert_eq!(bench.wants(), ["claim 1"], "it goes on with its own");
}

/// The node where a worker was before has not noticed that it has gone, claims an attempt for it, and dies.
#[test]
fn what_is_claimed_for_a_worker_elsewhere_after_it_has_left_is_asked_for() {
    let session = SessionId::from_uuid(Uuid::from_u128(3));
    let mut bench = Bench::new();
    bench.connect(Some(session), Vec::new());
    bench.found(Vec::new());
    bench.claimed(2, &[]);
    bench.wants();
    bench.now = Timestamp::from_micros(100_000_000);
    bench.steps(StepsIn::Look);
    assert_eq!(bench.wants(), ["find"]);
    let row = bench.row(key(1, 1), 90_000_000, false);
    bench.found(vec![row]);
    assert_eq!(bench.wants(), ["ask #1"]);
}

/// A client's end of an attempt is decided after a second look; nothing is kept of a client that was answered before.
#[test]
fn a_client_whose_run_cannot_be_read_leaves_nothing_behind() {
    let mut bench = Bench::new();
    let end = || {
        let end = StepEnd::Completed(Payload::json("8"));
        CommandBody::FinishStep { step: OpId(9), attempt: 1, elapsed: Duration::ZERO, end }
    };
    let mut ask = |request: u64| {
        let (id, identity) = (CommandId::from_uuid(Uuid::from_u128(u128::from(request))), "c".to_owned());
        bench.step(Input::Command { request, run: run(), id, identity, body: end() });
        bench.loads(history("default", 1));
        assert_eq!(bench.wants(), ["load", "load"], "another node may know of a later attempt");
        bench.step(Input::Loaded { run: run(), after: 2, events: Err(corrupt()) });
        let done = bench.out.drain(..).filter(|output| matches!(output, Output::Done { .. })).count();
        assert_eq!(done, 1);
    };
    ask(1);
    // The same number again is another client's, who is owed a second look too.
    ask(1);
}
