//! A worker's stream, with the worker played by hand.

use everstep_proto::api::command::Command;
use everstep_proto::api::server_message::Message as Out;
use everstep_proto::api::worker_message::Message as In;
use everstep_proto::api::{self};
use everstep_proto::history::event::Attributes;
use tonic::Code;

use super::support::{commit, fields, frame, hello, json, of_workflow, reason, start};

fn complete_step(step_id: u32, result: &str) -> Command {
    Command::CompleteStep(api::CompleteStep {
        step_id,
        name: "charge".to_owned(),
        attempt: 1,
        elapsed: None,
        result: Some(json(result)),
    })
}

#[tokio::test]
async fn a_run_is_carried_to_its_end() {
    let server = start().await;
    let mut worker = server.worker().await;
    let run_id = server.start_run("order-1").await;
    let run = worker.activated().await;
    assert_eq!((run.run_id.as_str(), run.epoch, run.base_seq, run.more), (run_id.as_str(), 1, 0, false));
    let seen = run.events.last().unwrap().seq;
    worker.send(commit(&run_id, 1, 1, seen, complete_step(1, "\"done\""))).await;
    let events = worker.committed(1).await;
    let [event] = &events[..] else { panic!("{events:?}") };
    assert!(event.payload_omitted, "the worker has it");
    let Some(Attributes::StepCompleted(step)) = &event.attributes else { panic!("{event:?}") };
    assert_eq!((step.step_id, &step.result), (1, &None));

    let done = Command::CompleteRun(api::CompleteRun { result: Some(json("42")), unconsumed: Vec::new() });
    worker.send(commit(&run_id, 1, 2, event.seq, done)).await;
    let wait = None;
    let result =
        server.runs().get_result(api::GetResultRequest { run: of_workflow("order-1"), wait }).await.unwrap();
    let result = result.into_inner();
    assert_eq!((result.status(), result.result), (api::RunStatus::Completed, Some(json("42"))));

    let whole = api::GetHistoryRequest { run: of_workflow("order-1"), ..api::GetHistoryRequest::default() };
    let events =
        server.runs().get_history(whole).await.unwrap().into_inner().message().await.unwrap().unwrap().events;
    let recorded = events.iter().find_map(|e| match &e.attributes {
        Some(Attributes::StepCompleted(step)) => step.result.clone(),
        _ => None,
    });
    assert_eq!(recorded, Some(json("\"done\"")), "a reader gets the bytes");
    drop(worker);
    server.stop().await;
}

#[tokio::test]
async fn a_worker_of_an_old_claim_is_refused() {
    let server = start().await;
    let mut worker = server.worker().await;
    let run_id = server.start_run("order-1").await;
    let run = worker.activated().await;
    let seen = run.events.last().unwrap().seq;
    worker.send(commit(&run_id, run.epoch + 1, 1, seen, complete_step(1, "1"))).await;
    let Some(Out::Rejected(rejected)) = worker.next().await.unwrap() else { panic!() };
    assert_eq!((rejected.reason.as_str(), rejected.evicted, rejected.number), ("FENCED", true, 1));
    drop(worker);
    server.stop().await;
}

#[tokio::test]
async fn heartbeats_are_acknowledged() {
    let server = start().await;
    let mut worker = server.worker().await;
    worker.send(In::Heartbeat(api::Heartbeat { number: 7 })).await;
    let Some(Out::HeartbeatAck(ack)) = worker.next().await.unwrap() else { panic!() };
    assert_eq!(ack.number, 7);
    drop(worker);
    server.stop().await;
}

#[tokio::test]
async fn a_session_goes_on_after_a_lost_stream() {
    let server = start().await;
    let mut worker = server.worker().await;
    let run_id = server.start_run("order-1").await;
    let run = worker.activated().await;
    let seen_seq = run.events.last().unwrap().seq;
    let token = worker.token.clone();
    drop(worker);
    let held = vec![api::HeldRun { run_id: run_id.clone(), epoch: run.epoch, seen_seq }];
    let again = api::Hello { session_token: token.clone(), held, ..hello() };
    let mut worker = server.stream(In::Hello(again)).await.unwrap();
    let Some(Out::Welcome(welcome)) = worker.next().await.unwrap() else { panic!() };
    assert!(welcome.resumed);
    assert_eq!(welcome.session_token, token);
    worker.send(commit(&run_id, run.epoch, 1, seen_seq, complete_step(1, "1"))).await;
    let events = worker.committed(1).await;
    assert!(events.iter().all(|e| !e.payload_omitted), "brought along: {events:?}");
    drop(worker);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_has_to_begin_with_hello() {
    let server = start().await;
    let beat = server.stream(In::Heartbeat(api::Heartbeat { number: 1 })).await;
    let refused = beat.err().unwrap();
    assert_eq!((refused.code(), fields(&refused)), (Code::InvalidArgument, vec!["messages[0]".to_owned()]));
    let newer =
        server.worker_with(api::Hello { protocol_min: 2, protocol_max: 2, ..hello() }).await.err().unwrap();
    assert_eq!((newer.code(), reason(&newer).as_str()), (Code::FailedPrecondition, "UNSUPPORTED_PROTOCOL"));
    let elsewhere =
        server.worker_with(api::Hello { namespace: "other".to_owned(), ..hello() }).await.err().unwrap();
    assert_eq!((elsewhere.code(), reason(&elsewhere).as_str()), (Code::NotFound, "NAMESPACE_NOT_FOUND"));
    server.stop().await;
}

#[tokio::test]
async fn a_message_that_is_none_ends_the_stream_and_names_the_field() {
    let server = start().await;
    let park = || Some(Command::Park(api::Park {}));
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    let commit_of = |run_id: &str, number, command| api::Commit {
        run_id: run_id.to_owned(),
        epoch: 1,
        number,
        seen_seq: 0,
        commands: vec![api::Command { command }],
        ahead_at: None,
    };
    let cases = [
        (frame(In::Hello(hello())), "messages[0].hello"),
        (api::ConnectRequest { messages: vec![api::WorkerMessage { message: None }] }, "messages[0].message"),
        (frame(In::Commit(commit_of("x", 1, park()))), "messages[0].commit.run_id"),
        (frame(In::Commit(commit_of(id, 0, park()))), "messages[0].commit.number"),
        (frame(In::Commit(commit_of(id, 1, None))), "messages[0].commit.commands[0].command"),
        (frame(In::NeedHistory(api::NeedHistory::default())), "messages[0].need_history.run_id"),
    ];
    for (message, field) in cases {
        let mut worker = server.worker().await;
        worker.outbound.send(message).await.unwrap();
        let end = worker.ended().await;
        assert_eq!((end.code(), fields(&end)), (Code::InvalidArgument, vec![field.to_owned()]));
    }
    server.stop().await;
}

#[tokio::test]
async fn goodbye_ends_the_stream() {
    let server = start().await;
    let mut worker = server.worker().await;
    worker.send(In::Goodbye(api::Goodbye {})).await;
    let end = worker.ended().await;
    assert!(matches!(end.code(), Code::Ok | Code::Unavailable), "{end:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_token_that_names_no_open_session_takes_over_nothing() {
    let server = start().await;
    let mut owner = server.worker().await;
    let run_id = server.start_run("order-1").await;
    let run = owner.activated().await;
    let forged = server
        .worker_with(api::Hello { session_token: "s1.letmein".to_owned(), ..hello() })
        .await
        .err()
        .unwrap();
    assert_eq!((forged.code(), reason(&forged).as_str()), (Code::InvalidArgument, "INVALID_SESSION_TOKEN"));
    // Well formed, but of a session that owns nothing: what it claims to hold is taken from it.
    let token = "s1.01890a5dac96774bbcceb302099a8057".to_owned();
    let held = vec![api::HeldRun { run_id: run_id.clone(), epoch: run.epoch, seen_seq: 1 }];
    let claims = api::Hello { session_token: token.clone(), held, ..hello() };
    let mut claimer = server.stream(In::Hello(claims)).await.unwrap();
    let Some(Out::Welcome(welcome)) = claimer.next().await.unwrap() else { panic!() };
    assert_eq!(welcome.session_token, token);
    let Some(Out::Evict(evict)) = claimer.next().await.unwrap() else { panic!() };
    assert_eq!(evict.run_id, run_id);
    // The owner is not disturbed.
    let seen = run.events.last().unwrap().seq;
    owner.send(commit(&run_id, run.epoch, 1, seen, complete_step(1, "1"))).await;
    assert_eq!(owner.committed(1).await.len(), 1);
    drop((owner, claimer));
    server.stop().await;
}

#[tokio::test]
async fn a_commit_to_a_closed_run_is_refused_and_changes_nothing() {
    let server = start().await;
    let mut worker = server.worker().await;
    let run_id = server.start_run("order-1").await;
    let run = worker.activated().await;
    let seen = run.events.last().unwrap().seq;
    let stop = api::TerminateRunRequest { run: of_workflow("order-1"), ..Default::default() };
    server.runs().terminate_run(stop).await.unwrap();
    worker.send(commit(&run_id, run.epoch, 1, seen, complete_step(1, "1"))).await;
    let refused = loop {
        if let Out::Rejected(rejected) = worker.next().await.unwrap().unwrap() {
            break rejected;
        }
    };
    assert!(refused.evicted, "{refused:?}");
    assert!(["RUN_CLOSED", "FENCED"].contains(&refused.reason.as_str()), "{refused:?}");
    let shown = server.runs().get_run(api::GetRunRequest { run: of_workflow("order-1") }).await.unwrap();
    let shown = shown.into_inner().run.unwrap();
    assert_eq!((shown.status(), shown.history_events), (api::RunStatus::Terminated, seen + 1));
    drop(worker);
    server.stop().await;
}

#[tokio::test]
async fn workers_of_one_identity_both_work() {
    let server = start().await;
    let one_slot = || api::Hello { run_slots: 1, ..hello() };
    let mut first = server.worker_with(one_slot()).await.unwrap();
    let mut second = server.worker_with(one_slot()).await.unwrap();
    let started = [server.start_run("order-1").await, server.start_run("order-2").await];
    let mut taken = [first.activated().await.run_id, second.activated().await.run_id];
    taken.sort_unstable();
    let mut started = started.to_vec();
    started.sort_unstable();
    assert_eq!(taken.to_vec(), started);
    drop((first, second));
    server.stop().await;
}
