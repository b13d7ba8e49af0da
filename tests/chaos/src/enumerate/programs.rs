//! The fixed programs of crash enumeration.

use everstep_tests::program::{
    Code, Course, Doubt, End, Op, Profile, Program as Workflow, QueuedStep, SIGNAL_NAME, Source, Step, Wish,
};

/// The step during which the signal comes.
pub(super) const SLOW: &str = "enumerate-slow......";
/// What the journal has once a queued step has said how far it is.
pub(super) const HEARTBEAT: &str = "\"phase\":\"beat\"";
/// The workflow id of the run that is asked for updates.
pub(super) const ASKED: &str = "asked";
/// The signal that no more updates come.
pub(super) const ALL_ASKED: &str = "enumerate-all-asked";
/// The update.
const UPDATE: &str = "enumerate-update";

fn step(name: &str, fails: u32, slow_ms: u64, bytes: usize) -> Step {
    let nonce = format!("{:.<20}", format!("enumerate-{name}"));
    Step { nonce, fails, slow_us: slow_ms * 1_000, bytes, refused: false }
}

/// One of everything, and long enough for a lease to be renewed and a wake to be swept.
pub(super) fn workflow() -> Workflow {
    let pause = |name: &str, ms: u64| Op::Sleep {
        nonce: format!("{:.<20}", format!("enumerate-{name}")),
        us: ms * 1_000,
    };
    let signal = Op::Signal { name: SIGNAL_NAME.to_owned(), id: "enumerate-signal".to_owned() };
    let refused = Step { refused: true, ..step("refused", 0, 1, 10) };
    Workflow {
        source: Source { seed: 0, profile: Profile::Chaos, generation: 0 },
        ops: vec![
            Op::Step(step("one", 0, 1, 100)),
            Op::Step(step("flaky", 1, 1, 100)),
            Op::Guarded { step: step("guarded", 0, 1, 40), doubt: Doubt::Retry },
            Op::Step(step("huge", 0, 1, 100_000)),
            pause("nap", 250),
            Op::Parallel(vec![
                vec![Op::Step(step("slow", 0, 2_200, 20))],
                vec![signal, Op::Step(step("told", 0, 1, 50))],
            ]),
            pause("parked", 600),
            Op::Race(vec![vec![Op::Step(step("racer", 0, 1, 30))], vec![Op::Never]]),
            Op::Step(refused),
            Op::Step(step("last", 0, 1, 20)),
        ],
        end: End::Output,
        wish: Wish::Nothing,
        code: Code::Same,
    }
}

/// Waits for an update whose handler takes a step, until everybody has asked, and for a queued step whose worker can die
/// after its heartbeat.
pub(super) fn asked() -> Workflow {
    let queued = QueuedStep {
        step: step("beat", 0, 600, 20),
        course: Course::Said,
        beats: true,
        doubt: None,
        priority: 3,
    };
    let update = Op::Update { id: UPDATE.to_owned(), step: Some(step("booked", 0, 1, 30)) };
    let all_asked = Op::Signal { name: SIGNAL_NAME.to_owned(), id: ALL_ASKED.to_owned() };
    Workflow { ops: vec![update, all_asked, Op::Queued(queued)], ..workflow() }
}
