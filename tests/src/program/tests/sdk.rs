//! The interpreter over the SDK, in the test kit, against what is predicted.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use everstep::testing::{Error, TestEnv};
use everstep::{Attribute, Ctx, StepCtx, StepError, StepInfo};

use super::*;

/// Programs that are looked at.
const SEEDS: u64 = 400;

struct Nothing;

impl Effects for Nothing {
    fn attempt(&self, _: &Step, _: &StepInfo) -> Pin<Box<dyn Future<Output = Result<(), StepError>> + Send>> {
        Box::pin(async { Ok(()) })
    }
}

fn env() -> TestEnv {
    TestEnv::new()
        .register(WORKFLOW_TYPE, |ctx: Ctx, source: Source| {
            interpret(ctx, source.program(), Build::B, Arc::new(Nothing))
        })
        .register_step::<Work, _, _>(|ctx: StepCtx, queued: QueuedStep| {
            run_queued(ctx, queued, Arc::new(Nothing))
        })
}

/// The test kit lets no time pass within a step, and has a worker for every queue.
fn can_be_played(program: &Program) -> bool {
    let mut can = program.wish == Wish::Nothing;
    each(&program.ops, &mut |op| {
        if let Op::Queued(queued) = op {
            can &= !queued.hangs() && !matches!(queued.course, Course::Unserved { .. });
        }
    });
    can
}

async fn play(source: Source) -> Result<Outcome, Error> {
    let mut env = env();
    let prediction = source.program().predict();
    let run = env.start(WORKFLOW_TYPE, &source).await?;
    for update in &prediction.updates {
        // The run cannot end without the update, so its code is there to refuse another one.
        let refused = env.update::<String>(run, UPDATE_NAME, "no-thanks").await;
        assert!(matches!(&refused, Err(Error::UpdateRejected(f)) if f.kind == REFUSED), "{refused:?}");
        let answer: String = env.update(run, UPDATE_NAME, &update.id).await?;
        assert_eq!(answer, update.answer);
    }
    for signal in &prediction.signals {
        env.signal_with_id(run, &signal.id, &signal.name, &signal.id).await?;
    }
    let ended = match env.result::<Vec<String>>(run).await {
        Ok(lines) => Outcome::Completed { output_sha256: output_sha256(&lines) },
        Err(Error::Ended { failure, .. }) => Outcome::Failed { failure_kind: failure.kind },
        Err(error) => return Err(error),
    };
    if let Some(n) = prediction.upserts.last() {
        let (attributes, _) = env.notes(run)?;
        assert_eq!(attributes.get(UPSERTED), Some(&Attribute::Int(*n)));
    }
    Ok(ended)
}

#[tokio::test]
async fn programs_end_as_predicted_in_the_test_kit() {
    let mut played = 0;
    for seed in 0..SEEDS {
        let source = Source { seed, profile: Profile::Sim, generation: 0 };
        let program = source.program();
        // A signal of a later program of the chain would reach the first one, and do no harm; an update would.
        if !can_be_played(&program) || program.end == End::Continue {
            continue;
        }
        let ended = play(source).await;
        let fits = ended.as_ref().is_ok_and(|ended| program.predict().outcome.admits(ended));
        assert!(fits, "seed {seed}: {ended:?} of {program:?}");
        played += 1;
    }
    assert!(played > SEEDS / 3, "{played} of {SEEDS}");
}
