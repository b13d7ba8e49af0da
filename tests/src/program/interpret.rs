//! Running a program as a workflow over the SDK.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use everstep::{
    ChildError, Ctx, Either, InDoubt, ParentClose, StepError, StepInfo, WorkflowError, join_all, race,
    select2, step_info,
};

use super::{
    Build, Doubt, End, Ends, FLAKY, Op, POISON, Program, REFUSED, Step, UNCAUGHT, WORKFLOW_TYPE, Wish,
    child_line, failure_line, no_child_line, signal_line, sleep_line, step_line, version_line, won_line,
};

/// What an attempt does to the world, and how it takes its time ([`Step::slow_us`]).
pub trait Effects: Send + Sync + 'static {
    /// One attempt of `step`: the whole of its effect, reported wherever the test looks for it. How the attempt
    /// ends is not decided here, unless by an error.
    fn attempt(
        &self,
        step: &Step,
        info: &StepInfo,
    ) -> Pin<Box<dyn Future<Output = Result<(), StepError>> + Send>>;
}

type Lines = Pin<Box<dyn Future<Output = Vec<String>> + Send>>;

/// What all parts of one run share.
struct Shared {
    ctx: Ctx,
    program: Program,
    build: Build,
    effects: Arc<dyn Effects>,
}

/// Runs `program` as `build` does.
///
/// # Errors
/// What the program ends with, unless that is its output.
///
/// # Panics
/// When the program is poisoned for this build.
pub async fn interpret(
    ctx: Ctx,
    program: Program,
    build: Build,
    effects: Arc<dyn Effects>,
) -> Result<Vec<String>, WorkflowError> {
    let canceled = ctx.canceled();
    let shared = Arc::new(Shared { ctx, program, build, effects });
    let body = top(Arc::clone(&shared));
    let lines = match shared.program.wish {
        Wish::Cancel => match select2(body, canceled).await {
            Either::Left(lines) => lines,
            Either::Right(()) => return Err(WorkflowError::Canceled("as asked".to_owned())),
        },
        Wish::Nothing | Wish::Terminate => body.await,
    };
    match shared.program.end {
        End::Output => Ok(lines),
        End::Uncaught => Err(WorkflowError::new(UNCAUGHT, "as planned")),
        End::Continue => Err(shared.ctx.continue_as_new(&shared.program.source.next())),
    }
}

async fn top(shared: Arc<Shared>) -> Vec<String> {
    let mut lines = Vec::new();
    for (index, op) in shared.program.ops.iter().enumerate() {
        assert!(!shared.program.is_poisoned(shared.build, index), "{POISON}");
        lines.extend(one(Arc::clone(&shared), op.clone()).await);
    }
    assert!(!shared.program.is_poisoned(shared.build, shared.program.ops.len()), "{POISON}");
    if shared.program.wish != Wish::Nothing {
        std::future::pending::<()>().await;
    }
    lines
}

async fn sequence(shared: Arc<Shared>, ops: Vec<Op>) -> Vec<String> {
    let mut lines = Vec::new();
    for op in ops {
        lines.extend(one(Arc::clone(&shared), op).await);
    }
    lines
}

fn one(shared: Arc<Shared>, op: Op) -> Lines {
    Box::pin(async move {
        let all = |parts: Vec<Vec<Op>>| parts.into_iter().map(|ops| sequence(Arc::clone(&shared), ops));
        match op {
            Op::Step(step) => vec![run_step(&shared, step, None).await],
            Op::Guarded { step, doubt } => vec![run_step(&shared, step, Some(doubt)).await],
            Op::Version { change, step } => {
                let version = match shared.build {
                    Build::A => 0,
                    Build::B => shared.ctx.version(&change, 0..=1),
                };
                let mut lines = vec![version_line(version)];
                if version == 1 {
                    lines.push(run_step(&shared, step, None).await);
                }
                lines
            }
            Op::Sleep { nonce, us } => {
                shared.ctx.sleep(std::time::Duration::from_micros(us)).await;
                vec![sleep_line(&nonce)]
            }
            Op::Child { nonce, source, abandoned } => {
                let policy = if abandoned { ParentClose::Abandon } else { ParentClose::Terminate };
                let child = shared.ctx.child::<Vec<String>>(WORKFLOW_TYPE, source).on_parent_close(policy);
                vec![match child.await {
                    Ok(output) => child_line(&nonce, &output),
                    Err(ChildError::Ended { failure, .. } | ChildError::NotStarted(failure)) => {
                        no_child_line(&nonce, &failure.kind)
                    }
                    Err(ChildError::Payload(problem)) => problem,
                }]
            }
            Op::Signal { name, .. } => {
                let id = shared.ctx.signal::<String>(name).await;
                vec![signal_line(&id.unwrap_or_else(|error| error.to_string()))]
            }
            Op::Parallel(branches) => join_all(all(branches)).await.concat(),
            Op::Race(arms) => {
                let (index, lines) = race(all(arms)).await;
                [vec![won_line(index)], lines].concat()
            }
            Op::Never => std::future::pending().await,
        }
    })
}

async fn run_step(shared: &Shared, step: Step, doubt: Option<Doubt>) -> String {
    let name = shared.program.step_name(&step, shared.build);
    let effects = Arc::clone(&shared.effects);
    let closure = move || {
        let (step, effects) = (step.clone(), Arc::clone(&effects));
        async move {
            let Some(info) = step_info() else { return Err(StepError::new("Outside", "not in a step")) };
            effects.attempt(&step, &info).await?;
            match step.ends(info.attempt) {
                Ends::Flaky => Err(StepError::new(FLAKY, "as planned")),
                Ends::Refused => Err(StepError::new(REFUSED, step.nonce.clone()).non_retryable()),
                Ends::Well => Ok(step.result()),
            }
        }
    };
    let policy = shared.program.source.profile.retry_policy();
    let mut step = shared.ctx.step(name, closure).retry(policy);
    if let Some(doubt) = doubt {
        step = step.in_doubt(match doubt {
            Doubt::Retry => InDoubt::Retry,
            Doubt::Fail => InDoubt::Fail,
            Doubt::AskHuman => InDoubt::AskHuman,
        });
    }
    match step.await {
        Ok(result) => step_line(&result),
        Err(failed) => failure_line(&failed.failure.kind, &failed.failure.message),
    }
}
