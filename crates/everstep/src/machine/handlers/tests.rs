//! What a workflow shows between two events, and what asking must not do to it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use everstep_core::{Actor, CommandId, Event, EventBody, RunId, RunStarted, Seq, Timestamp, TraceContext};
use uuid::Uuid;

use super::*;
use crate::ctx::Known;
use crate::worker::workflow_factory;
use crate::{Ctx, QueryError, State, StepError, WorkflowError};

fn event(seq: Seq, body: EventBody) -> Event {
    let command_id = CommandId::from_uuid(Uuid::nil());
    Event { seq, at: Timestamp::from_micros(0), epoch: 1, command_id, actor: Actor::System, body }
}

fn begun<F, Fut>(workflow: F) -> Machine
where
    F: Fn(Ctx, ()) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<u32, WorkflowError>> + Send + 'static,
{
    let started = RunStarted {
        namespace: "default".into(),
        workflow_id: "w".into(),
        workflow_type: "t".into(),
        task_queue: "default".into(),
        input: Payload::json("null"),
        request_id: "r".into(),
        run_timeout: None,
        seed: 5,
        trace: TraceContext::default(),
        ..RunStarted::default()
    };
    let run = RunId::from_uuid(Uuid::from_u128(7));
    let at = Timestamp::from_micros(0);
    let mut machine = Machine::new(run, &started, at, &workflow_factory(workflow), Known::default());
    machine.apply(&event(1, EventBody::RunStarted(Box::new(started)))).unwrap();
    machine
}

fn ask(machine: &Machine, name: &str, input: &str) -> Result<String, String> {
    let text = |value: Payload| String::from_utf8_lossy(&value.data).into_owned();
    let handler = machine.query(name).map_err(|f| f.kind)?;
    answer(&handler, Payload::json(input.to_owned())).map(text).map_err(|f| f.kind)
}

fn signal(seq: Seq, value: u32) -> Event {
    let input = Payload::json(value.to_string());
    event(seq, EventBody::SignalReceived { name: "go".into(), signal_id: seq.to_string(), input })
}

async fn shows(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let last = ctx.state(0u32);
    ctx.on_query("last", {
        let last = last.clone();
        move |plus: u32| Ok(last.get() + plus)
    });
    ctx.on_query("no", |(): ()| Err::<u32, _>(QueryError::new("No", "never")));
    let timer = ctx.sleep(Duration::from_secs(90));
    let step = ctx.step("work", || async { Ok::<_, StepError>(1) });
    let signals = async {
        loop {
            last.set(ctx.signal::<u32>("go").await?);
        }
    };
    let (_, _, ended): (_, _, Result<u32, WorkflowError>) = crate::join!(timer, step, signals);
    ended
}

#[test]
fn a_handler_reads_what_the_workflow_has_set_so_far() {
    let mut machine = begun(shows);
    assert_eq!(ask(&machine, "last", "0"), Ok("0".into()));
    let work = machine.take_work().len();
    assert_eq!(work, 2);
    machine.apply(&signal(2, 7)).unwrap();
    assert_eq!(ask(&machine, "last", "10"), Ok("17".into()));
    assert_eq!(ask(&machine, "last", "\"x\""), Err("Payload".into()));
    assert_eq!(ask(&machine, "no", "null"), Err("No".into()));
    assert_eq!(ask(&machine, "first", "null"), Err("UnknownQuery".into()));
    assert!(machine.take_work().is_empty() && machine.is_waiting(), "nobody has moved it");
}

#[test]
fn waits_are_listed_with_their_lines() {
    let machine = begun(shows);
    let waits: Value = serde_json::from_str(&ask(&machine, WAITS, "null").unwrap()).unwrap();
    let shown: Vec<(&str, Option<&str>)> =
        waits.as_array().unwrap().iter().map(|w| (w["kind"].as_str().unwrap(), w["name"].as_str())).collect();
    assert_eq!(shown, [("timer", None), ("step", Some("work")), ("signal", Some("go"))]);
    assert_eq!(waits[0]["seconds"], 90.0);
    for wait in waits.as_array().unwrap() {
        assert!(wait["source"].as_str().unwrap().contains("handlers/tests.rs:"), "{wait}");
    }
}

#[test]
fn a_handler_that_does_more_than_look_fails_and_changes_nothing() {
    async fn tempts(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
        let value = ctx.state(1u32);
        let each = |name: &str, act: fn(&Ctx, &State<u32>)| {
            let (inner, value) = (ctx.clone(), value.clone());
            ctx.on_query(name, move |(): ()| {
                act(&inner, &value);
                Ok(0)
            });
        };
        each("step", |ctx, _| drop(ctx.step("s", || async { Ok::<_, StepError>(1) })));
        each("sleep", |ctx, _| drop(ctx.sleep(Duration::from_secs(1))));
        each("random", |ctx, _| assert_eq!(ctx.random(), 0));
        each("set", |_, value| value.set(2));
        each("take", |ctx, _| drop(futures::FutureExt::now_or_never(ctx.signal::<u32>("go"))));
        each("answer", |ctx, _| ctx.on_query("more", |(): ()| Ok(1)));
        each("panic", |_, _| panic!("as planned"));
        each("look", |ctx, value| assert!(value.with(|v| *v == 1) && ctx.is_replaying()));
        ctx.step("first", || async { Ok::<_, StepError>(1) }).await?;
        Ok(ctx.signal("go").await?)
    }
    let mut machine = begun(tempts);
    machine.apply(&signal(2, 7)).unwrap();
    for misuse in ["step", "sleep", "random", "set", "take", "answer"] {
        assert_eq!(ask(&machine, misuse, "null"), Err("CtxMisuse".into()), "{misuse}");
    }
    assert_eq!(ask(&machine, "panic", "null"), Err("Panic".into()));
    assert_eq!(ask(&machine, "look", "null"), Ok("0".into()));
    let work: Vec<String> = machine.take_work().iter().map(|w| format!("{w:?}")).collect();
    assert_eq!(work, ["Attempt(#1 first 1)"]);
}

#[test]
fn a_run_that_is_let_go_leaves_nothing_behind_even_if_its_handlers_hold_its_ctx() {
    let machine = begun(|ctx: Ctx, ()| async move {
        let inner = ctx.clone();
        ctx.on_query("id", move |(): ()| Ok(inner.run_info().run_id.to_string()));
        Ok(ctx.signal("go").await?)
    });
    assert!(ask(&machine, "id", "null").unwrap().contains("00000007"));
    let shared = Arc::downgrade(&machine.shared);
    drop(machine);
    assert_eq!(Weak::strong_count(&shared), 0);
}

#[test]
fn reading_a_state_for_long_does_not_keep_the_workflow_from_setting_it() {
    let (tell, told) = std::sync::mpsc::channel::<State<Vec<u32>>>();
    let mut machine = begun(move |ctx: Ctx, ()| {
        let tell = tell.clone();
        async move {
            let state = ctx.state(vec![1]);
            let _ = tell.send(state.clone());
            let more = ctx.signal("go").await?;
            state.update(|all| all.push(more));
            Ok(0)
        }
    });
    let state = told.recv().unwrap();
    state.with(|before| {
        machine.apply(&signal(2, 7)).unwrap();
        assert_eq!((before.clone(), state.get()), (vec![1], vec![1, 7]));
    });
}
