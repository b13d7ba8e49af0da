//! Updates: asked of the code as the run stands, accepted right there, asked again when something was faster.

use everstep_core::{Actor, Command, CommandBody, CommandId, CommitCommand, WorkerCommit};

use super::*;

fn update(id: &str) -> Box<Command> {
    let (update_id, name) = (id.to_owned(), "add".to_owned());
    let body = CommandBody::AcceptUpdate { update_id, name, input: Payload::json("1"), seen: 0 };
    Box::new(Command { id: CommandId::from_uuid(Uuid::from_u128(9)), actor: Actor::System, body })
}

impl Bench {
    fn update(&mut self, request: u64, n: u128, run: RunId, id: &str) {
        let wait = Duration::from_secs(10);
        self.step(Input::Update { request, ask: ask(n), run, command: update(id), wait });
    }

    fn signal(&mut self, request: u64, run: RunId) {
        let (name, signal_id) = ("go".to_owned(), request.to_string());
        let body = CommandBody::Signal { name, signal_id, input: Payload::json("1") };
        let id = CommandId::from_uuid(Uuid::from_u128(u128::from(request)));
        self.step(Input::Command { request, run, id, identity: "c".to_owned(), body });
    }

    /// Commits what is on its way to the log; gives the kinds of its events.
    fn commit(&mut self) -> Vec<String> {
        let append = |o: &Output| match o {
            Output::Append { ticket, append, .. } => Some((*ticket, append.clone())),
            _ => None,
        };
        let Some((ticket, append)) = self.out.iter().find_map(append) else { return Vec::new() };
        self.out.retain(|o| !matches!(o, Output::Append { .. }));
        self.step(Input::Appended { ticket, verdict: Verdict::Committed });
        append.run.events.iter().map(|e| e.body.kind().to_owned()).collect()
    }

    fn told(&mut self, request: u64) -> Option<Result<Seq, Error>> {
        let at = self.out.iter().position(|o| match o {
            Output::Done { request: r, .. } | Output::Accepted { request: r, .. } => *r == request,
            _ => false,
        })?;
        match self.out.remove(at) {
            Output::Accepted { seq, .. } => Some(Ok(seq)),
            Output::Done { result, .. } => Some(result.map(|()| 0)),
            _ => None,
        }
    }
}

/// A run that is owned by link 5, and its tail.
fn owned() -> (Bench, RunId, Epoch, Seq) {
    let mut bench = Bench::new(false);
    bench.worker(5, "b1");
    let (run, epoch, tail) = bench.started();
    bench.out.clear();
    (bench, run, epoch, tail)
}

#[test]
fn what_the_code_agrees_to_is_accepted_right_after_what_it_had_seen() {
    let (mut bench, run, epoch, tail) = owned();
    bench.update(7, 1, run, "u");
    assert_eq!(bench.asked(), [(5, ask(1), epoch, 0)]);
    assert!(bench.commit().is_empty(), "nothing before the code agrees");
    bench.say(5, 1, tail, Said::Passed);
    assert!(bench.told(7).is_none(), "nothing before it is durable");
    assert_eq!(bench.commit(), ["UpdateAccepted"]);
    assert_eq!(bench.told(7).unwrap().unwrap(), tail + 1);
    bench.update(8, 2, run, "u");
    assert!(bench.asked().is_empty(), "it is known");
    assert_eq!(bench.told(8).unwrap().unwrap(), tail + 1);
}

/// What other code says of the run is no word of its own: the caller would take it for one, and give up.
#[test]
fn an_update_waits_for_code_that_fits_the_history() {
    let asked = || {
        let (mut bench, run, _, tail) = owned();
        bench.update(7, 1, run, "u");
        // The owner lets go of the run, and other code is given the history.
        bench.say(5, 1, 0, Said::Gone("parked".to_owned()));
        bench.load(1, tail);
        bench.say(5, 1, 0, unfit("something else"));
        bench
    };
    let mut bench = asked();
    assert!(bench.told(7).is_none(), "a worker that has the code may come");
    bench.out.clear();
    bench.worker(6, "b2");
    assert!(bench.out.iter().any(|o| matches!(o, Output::LoadForAsk { .. })), "it has");
    let mut bench = asked();
    bench.step(Input::AskOver(ask(1)));
    assert!(matches!(bench.told(7), Some(Err(Error::NoWorker { .. }))));
}

#[test]
fn what_the_code_refuses_is_not_written() {
    let (mut bench, run, _, tail) = owned();
    bench.update(7, 1, run, "u");
    assert_eq!(bench.asked().len(), 1);
    let refused = Said::Refused { kind: "No".to_owned(), message: "never".to_owned() };
    bench.say(5, 1, tail, refused);
    assert!(matches!(bench.told(7), Some(Err(Error::UpdateRejected { kind, .. })) if kind == "No"));
    assert!(bench.commit().is_empty());
    bench.update(8, 2, run, "u");
    assert_eq!(bench.asked().len(), 1, "nor remembered");
}

#[test]
fn when_something_was_faster_the_code_is_asked_again() {
    let (mut bench, run, _, tail) = owned();
    bench.update(7, 1, run, "u");
    bench.asked();
    bench.signal(8, run);
    bench.say(5, 1, tail, Said::Passed);
    assert_eq!(bench.commit(), ["SignalReceived"]);
    assert!(bench.told(7).is_none());
    assert_eq!(bench.asked().len(), 1);
    bench.say(5, 1, tail, Said::Passed);
    assert_eq!(bench.asked().len(), 0, "it has to know of the signal");
}

/// From the third time on the run stands still while its code is asked.
#[test]
fn a_busy_run_is_held_still_for_a_moment() {
    let (mut bench, run, epoch, mut tail) = owned();
    bench.update(7, 1, run, "u");
    for request in [8, 9] {
        bench.signal(request, run);
        bench.say(5, 1, tail, Said::Passed);
        assert_eq!(bench.commit(), ["SignalReceived"]);
        assert!(bench.told(request).unwrap().is_ok());
        tail += 1;
    }
    let held = |o: &Output| matches!(o, Output::HoldFor { wait, .. } if *wait == Duration::from_secs(1));
    assert!(bench.out.iter().any(held));
    bench.signal(10, run);
    assert!(bench.commit().is_empty(), "held back");
    bench.say(5, 1, tail, Said::Passed);
    assert_eq!(bench.commit(), ["UpdateAccepted", "SignalReceived"]);
    assert_eq!(bench.told(7).unwrap().unwrap(), tail + 1);

    // The same, and the owner has gone ahead of the record: it cannot answer before that is recorded.
    let (mut bench, run, _, mut tail) = owned();
    bench.update(7, 1, run, "u");
    for request in [8, 9] {
        bench.signal(request, run);
        bench.say(5, 1, tail, Said::Passed);
        bench.commit();
        tail += 1;
    }
    let end = CommitCommand::CompleteStep {
        step: everstep_core::OpId(1),
        name: "s".to_owned(),
        attempt: 1,
        elapsed: Duration::ZERO,
        result: Payload::json("1"),
    };
    let at = Timestamp::from_micros(1_000_000);
    let commit = WorkerCommit { epoch, number: 1, seen: tail, commands: vec![end], ahead: Some(at) };
    bench.step(Input::FromWorker { link: 5, message: WorkerIn::Commit { run_id: run, commit } });
    assert_eq!(bench.commit(), ["StepCompleted"]);
}

#[test]
fn a_hold_ends_by_itself_and_a_caller_hears_when_it_is_all_in_vain() {
    let (mut bench, run, _, mut tail) = owned();
    bench.update(7, 1, run, "u");
    let mut request = 8;
    let told = loop {
        if let Some(told) = bench.told(7) {
            break told;
        }
        bench.signal(request, run);
        // Whatever was held back goes on when the time is over.
        bench.step(Input::HoldOver { run, request: 7 });
        bench.say(5, 1, tail, Said::Passed);
        tail += bench.commit().iter().filter(|kind| *kind == "SignalReceived").count() as Seq;
        request += 1;
        assert!(request < 40, "{:?}", bench.out);
    };
    assert!(matches!(told, Err(Error::Contention { attempts: 8 })), "{told:?}");
    bench.update(50, 2, run, "v");
    bench.asked();
    bench.step(Input::AskOver(ask(2)));
    assert!(matches!(bench.told(50), Some(Err(Error::NoAnswer))));
}
