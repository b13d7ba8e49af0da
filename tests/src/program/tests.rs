//! The generator against what its users build on.

use std::collections::BTreeSet;

use super::*;

mod sdk;

fn programs() -> impl Iterator<Item = Program> {
    [Profile::Sim, Profile::Chaos]
        .into_iter()
        .flat_map(|profile| (0..2_000).map(move |seed| Source { seed, profile, generation: 0 }.program()))
}

/// Every op, also those within others.
fn each<'a>(ops: &'a [Op], see: &mut impl FnMut(&'a Op)) {
    for op in ops {
        see(op);
        if let Op::Parallel(parts) | Op::Race(parts) = op {
            parts.iter().for_each(|part| each(part, see));
        }
    }
}

#[test]
fn a_seed_gives_one_program_also_through_json() {
    for program in programs() {
        let again = program.source.program();
        assert_eq!(program, again);
        assert_eq!(program.predict(), again.predict());
        let text = serde_json::to_string(&program).unwrap();
        assert_eq!(serde_json::from_str::<Program>(&text).unwrap(), program);
    }
}

#[test]
fn nonces_are_unique_among_all_programs_of_a_profile() {
    let mut seen = BTreeSet::new();
    for program in programs().filter(|p| p.source.profile == Profile::Sim) {
        each(&program.ops, &mut |op| {
            let nonce = match op {
                Op::Step(step) | Op::Guarded { step, .. } | Op::Version { step, .. } => &step.nonce,
                Op::Queued(queued) => &queued.step.nonce,
                Op::Sleep { nonce, .. } | Op::Child { nonce, .. } | Op::TellNobody { nonce } => nonce,
                Op::Tell(tell) => &tell.nonce,
                Op::Signal { id, .. } | Op::Update { id, .. } => id,
                Op::Parallel(_) | Op::Race(_) | Op::Never | Op::Upsert { .. } => return,
            };
            assert!(seen.insert(nonce.clone()), "{nonce} twice");
        });
    }
    assert!(seen.len() > 5_000, "{}", seen.len());
}

#[test]
fn every_program_can_end_in_few_ways() {
    for program in programs() {
        match program.predict().outcome {
            Outcome::Any { of } => {
                let distinct: BTreeSet<String> = of.iter().map(|o| format!("{o:?}")).collect();
                assert!(
                    of.len() == distinct.len() && (2..=8).contains(&of.len()),
                    "{:?}: {of:?}",
                    program.source
                );
            }
            Outcome::Completed { output_sha256 } => assert_eq!(output_sha256.len(), 64),
            Outcome::Failed { .. } | Outcome::Canceled | Outcome::Terminated | Outcome::Continued => {}
        }
    }
}

#[test]
fn every_kind_of_op_end_wish_and_difference_occurs() {
    let mut kinds: BTreeSet<&str> = BTreeSet::new();
    let mut huge = 0;
    for program in programs() {
        each(&program.ops, &mut |op| {
            kinds.insert(match op {
                Op::Step(step) if step.refused => "refused",
                Op::Step(step) if step.fails > 0 => "flaky",
                Op::Step(_) => "step",
                Op::Guarded { doubt: Doubt::Retry, .. } => "guarded",
                Op::Guarded { doubt: Doubt::Fail, .. } => "given up",
                Op::Guarded { doubt: Doubt::AskHuman, .. } => "asked",
                Op::Version { .. } => "version",
                Op::Sleep { .. } => "sleep",
                Op::Child { .. } => "child",
                Op::Queued(queued) => match (queued.course, queued.doubt) {
                    (Course::Said, Some(Doubt::Fail)) => "queued, given up",
                    (Course::Said, Some(Doubt::AskHuman)) => "queued, asked",
                    (Course::Said, _) => "queued",
                    (Course::Silent, _) => "queued, silent",
                    (Course::Faint, _) => "queued, faint",
                    (Course::Exhausted { .. }, _) => "queued, exhausted",
                    (Course::Unserved { in_all: true }, _) => "queued, unserved in all",
                    (Course::Unserved { in_all: false }, _) => "queued, unserved",
                },
                Op::Tell(tell) if tell.source.waits_for_stop() => "stopped",
                Op::Tell(Tell { by: By::Run, .. }) => "told by run",
                Op::Tell(Tell { by: By::Workflow, .. }) => "told by workflow",
                Op::TellNobody { .. } => "nobody",
                Op::Update { step: Some(_), .. } => "update with a step",
                Op::Update { step: None, .. } => "update",
                Op::Upsert { .. } => "upsert",
                Op::Signal { name, .. } if name == SIGNAL_NAME => "signal",
                Op::Signal { .. } => "named signal",
                Op::Parallel(_) => "parallel",
                Op::Race(_) => "race",
                Op::Never => "never",
            });
            huge += usize::from(matches!(op, Op::Step(step) if step.bytes > 100_000));
        });
        kinds.insert(match program.predict().outcome {
            Outcome::Any { .. } => "any",
            Outcome::Completed { .. } => "completed",
            Outcome::Failed { .. } => "failed",
            Outcome::Canceled => "canceled",
            Outcome::Terminated => "terminated",
            Outcome::Continued => "continued",
        });
        kinds.insert(match program.code {
            Code::Same => "same",
            Code::Renamed { .. } => "renamed",
            Code::Poisoned { .. } => "poisoned",
        });
    }
    assert_eq!(kinds.len(), 14 + 15 + 6 + 3, "{kinds:?}");
    assert!(huge > 10, "{huge} huge results");
}

#[test]
fn some_programs_begin_more_children_than_a_node_does_at_one_time() {
    let wide = Source { seed: 1_000, profile: Profile::Sim, generation: 0 }.widened();
    assert!(wide.is_wide());
    let program = wide.program();
    let Some(Op::Parallel(children)) = program.ops.last() else { panic!("no fan-out in {program:?}") };
    assert!(children.len() > 64 && children.iter().all(|part| matches!(part[..], [Op::Child { .. }])));
    assert!(programs().filter(|p| p.source.is_wide()).count() > 0);
}

#[test]
fn a_child_that_is_told_waits_for_what_it_is_told() {
    let source = Source { seed: 7, profile: Profile::Sim, generation: 0 };
    for number in 0..200 {
        let told = source.told_child(number, false).program();
        assert!(!told.predict().signals.is_empty() && told.wish == Wish::Nothing);
        assert!(told.predict().signals.iter().all(|s| s.required && s.name == SIGNAL_NAME));
        let stopped = source.told_child(number, true).program();
        assert!(stopped.predict().signals.is_empty() && stopped.predict().outcome == Outcome::Canceled);
    }
}

#[test]
fn a_result_names_its_step_and_has_its_length() {
    let step = Step { nonce: "0000000000000007.001".into(), fails: 1, slow_us: 0, bytes: 50, refused: false };
    assert_eq!(step_line(&step.result()), "step 0000000000000007.001 50");
    assert_eq!((step.ends(1), step.ends(2)), (Ends::Flaky, Ends::Well));
    let refused = Step { refused: true, bytes: 0, ..step };
    assert_eq!((refused.ends(1), refused.ends(3)), (Ends::Flaky, Ends::Refused));
    assert_eq!(refused.result(), refused.nonce);
}

#[test]
fn a_prediction_is_worked_out_by_hand_once() {
    let step = |n: u32| Step {
        nonce: format!("{:016x}.{n:03}", 9),
        fails: n,
        slow_us: 0,
        bytes: 0,
        refused: n == 2,
    };
    let arm = |last: Op| vec![Op::Sleep { nonce: "z".into(), us: 5 }, last];
    let program = Program {
        source: Source { seed: 9, profile: Profile::Sim, generation: 0 },
        ops: vec![
            Op::Parallel(vec![vec![Op::Step(step(1))], vec![Op::Step(step(2))]]),
            Op::Race(vec![arm(Op::Never), arm(Op::Signal { name: "s".into(), id: "s".into() })]),
        ],
        end: End::Output,
        wish: Wish::Nothing,
        code: Code::Same,
    };
    let lines =
        ["step 0000000000000009.001 20", "refused 0000000000000009.002", "won 1", "slept z", "signal s"];
    let lines: Vec<String> = lines.map(str::to_owned).to_vec();
    let prediction = program.predict();
    assert_eq!(prediction.outcome, Outcome::Completed { output_sha256: output_sha256(&lines) });
    let steps: Vec<_> = prediction.steps.iter().map(|s| (s.attempts_min, s.required)).collect();
    assert_eq!(steps, [(2, true), (3, true)]);
    assert_eq!(prediction.signals.iter().map(|s| s.required).collect::<Vec<_>>(), [false]);
    assert_eq!(prediction.timers.len(), 2);
    // The hash is that of plain JSON text, so that nobody needs this code to check it.
    assert_eq!(
        output_sha256(&["a".to_owned(), "b".to_owned()]),
        "0473ef2dc0d324ab659d3580c1134e9d812035905c4781fdd6d529b0c6860e13"
    );
}
