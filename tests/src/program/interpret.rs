//! Running a program as a workflow over the SDK.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use everstep::{
    ChildError, Ctx, Either, InDoubt, ParentClose, QueuedDoubt, Refused, State, StepCtx, StepError, StepInfo,
    StepType, WorkflowError, attributes, join_all, race, select2, step_info,
};

use super::{
    Beat, Build, By, Doubt, End, Ends, FLAKY, Op, POISON, Program, QUEUED_STEP, QueuedStep, REFUSED,
    SIGNAL_NAME, Step, Tell, UNCAUGHT, UPDATE_NAME, UPSERTED, WORKFLOW_TYPE, Wish, agrees, child_line,
    failure_line, no_child_line, nobody, signal_line, sleep_line, step_line, untold_line, update_answer,
    update_line, version_line, won_line,
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

    /// Whether whoever receives the effects can tell what has arrived: then a guarded step that ends well at once asks
    /// [`happened`](Self::happened) before it runs again.
    fn keeps_books(&self) -> bool {
        false
    }

    /// Whether this attempt had its effect; if not, it will not have it any more.
    fn happened(&self, _info: &StepInfo) -> Pin<Box<dyn Future<Output = Result<bool, StepError>> + Send>> {
        Box::pin(std::future::ready(Err(StepError::new("Unknown", "nobody keeps books"))))
    }
}

type Lines = Pin<Box<dyn Future<Output = Vec<String>> + Send>>;

/// What all parts of one run share.
struct Shared {
    ctx: Ctx,
    program: Program,
    build: Build,
    effects: Arc<dyn Effects>,
    /// The updates that have been carried out.
    updated: State<BTreeSet<String>>,
}

/// The queued step of programs.
#[derive(Debug)]
pub struct Work;

impl StepType for Work {
    const NAME: &'static str = QUEUED_STEP;
    type Input = QueuedStep;
    type Output = String;
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
    let updated = ctx.state(BTreeSet::new());
    let shared = Arc::new(Shared { ctx, program, build, effects, updated });
    take_updates(&shared);
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

/// Whatever the code holds on to here, it holds on to itself: no `Shared`.
fn take_updates(shared: &Shared) {
    let Shared { ctx, program, build, effects, updated } = shared;
    let agrees = |id: &String| {
        if agrees(id) { Ok(()) } else { Err(Refused::of_kind(REFUSED, "as planned")) }
    };
    let (program, build, effects) = (program.clone(), *build, Arc::clone(effects));
    let updated = updated.clone();
    ctx.on_update(UPDATE_NAME, agrees, move |ctx, id: String| {
        let (program, effects, updated) = (program.clone(), Arc::clone(&effects), updated.clone());
        async move {
            let shared = Shared { ctx, program, build, effects, updated };
            let line = match shared.program.update_step(&id).cloned() {
                Some(step) => Some(run_step(&shared, step, None).await),
                None => None,
            };
            let answer = update_answer(&id, line.as_deref());
            shared.updated.update(|updated| updated.insert(id));
            Ok(answer)
        }
    });
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
                vec![ended_line(&nonce, child.await)]
            }
            Op::Queued(queued) => vec![queue(&shared, queued).await],
            Op::Tell(told) => tell(&shared, told).await,
            Op::TellNobody { nonce } => {
                let sent = shared.ctx.external(nobody(&nonce)).signal(SIGNAL_NAME, &nonce).await;
                vec![untold_line(&nonce, sent.as_ref().err().map_or("", |failed| &failed.failure.kind))]
            }
            Op::Update { id, .. } => {
                shared.ctx.wait(|| shared.updated.with(|updated| updated.contains(&id))).await;
                vec![update_line(&id)]
            }
            Op::Upsert { n } => {
                shared.ctx.upsert(attributes! { UPSERTED => n });
                Vec::new()
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

fn ended_line(nonce: &str, ended: Result<Vec<String>, ChildError>) -> String {
    match ended {
        Ok(output) => child_line(nonce, &output),
        Err(ChildError::Ended { failure, .. } | ChildError::NotStarted(failure)) => {
            no_child_line(nonce, &failure.kind)
        }
        Err(ChildError::Payload(problem)) => problem,
    }
}

/// All that the child waits for is sent at once, and arrives in this order.
async fn tell(shared: &Shared, tell: Tell) -> Vec<String> {
    let ctx = &shared.ctx;
    let mut child = ctx.child::<Vec<String>>(WORKFLOW_TYPE, tell.source);
    if tell.by == By::Workflow {
        child = child.workflow_id(tell.workflow_id());
    }
    let handle = match child.start().await {
        Ok(handle) => handle,
        Err(error) => return vec![ended_line(&tell.nonce, Err(error))],
    };
    let run = ctx.external_run(handle.run_id());
    let by_name = ctx.external(tell.workflow_id());
    let signal = |id: &String| match tell.by {
        By::Run => handle.signal(SIGNAL_NAME, id),
        By::Workflow => by_name.signal(SIGNAL_NAME, id),
    };
    let mut sent: Vec<_> =
        tell.source.program().predict().signals.iter().map(|planned| signal(&planned.id)).collect();
    if tell.source.waits_for_stop() {
        sent.push(match tell.by {
            By::Run => handle.cancel("as told"),
            By::Workflow => by_name.cancel("as told"),
        });
    }
    let failed = join_all(sent).await.into_iter().filter_map(Result::err);
    let mut lines: Vec<String> = failed.map(|e| untold_line(&tell.nonce, &e.failure.kind)).collect();
    lines.push(ended_line(&tell.nonce, handle.result().await));
    if tell.late {
        let late = run.signal(SIGNAL_NAME, "late").await;
        lines.push(untold_line(&tell.nonce, late.as_ref().err().map_or("", |e| &e.failure.kind)));
    }
    lines
}

async fn queue(shared: &Shared, queued: QueuedStep) -> String {
    let options = queued.options(shared.program.source.profile);
    let doubt = queued.doubt;
    let mut step = shared.ctx.run::<Work>(queued).retry(options.retry).priority(options.priority);
    if !options.task_queue.is_empty() {
        step = step.task_queue(options.task_queue);
    }
    if let Some(limit) = options.schedule_to_start {
        step = step.schedule_to_start(limit.to_std());
    }
    if let Some(limit) = options.start_to_close {
        step = step.start_to_close(limit.to_std());
    }
    if let Some(limit) = options.schedule_to_close {
        step = step.schedule_to_close(limit.to_std());
    }
    if let Some(limit) = options.heartbeat {
        step = step.heartbeat(limit.to_std());
    }
    if let Some(doubt) = doubt {
        step = step.in_doubt(match doubt {
            Doubt::Retry => QueuedDoubt::Retry,
            Doubt::Fail => QueuedDoubt::Fail,
            Doubt::AskHuman => QueuedDoubt::AskHuman,
        });
    }
    match step.await {
        Ok(result) => step_line(&result),
        Err(failed) => failure_line(&failed.failure.kind, &failed.failure.message),
    }
}

/// An attempt of a queued step: what a worker that runs queued steps registers as [`Work`].
///
/// # Errors
/// What the attempt is planned to end with; and kind `Confused`, for good, when it is told that an attempt before it
/// was further than any can have been.
pub async fn run_queued(
    ctx: StepCtx,
    queued: QueuedStep,
    effects: Arc<dyn Effects>,
) -> Result<String, StepError> {
    let info = ctx.info().clone();
    if queued.beats {
        if let Some(before) = ctx.last_heartbeat::<Beat>()
            && !queued.is_resumed(info.attempt, &before)
        {
            let told = format!("attempt {} of {} is told {before:?}", info.attempt, queued.step.nonce);
            return Err(StepError::new("Confused", told).non_retryable());
        }
        ctx.heartbeat(&queued.beat(info.attempt));
    }
    effects.attempt(&queued.step, &info).await?;
    match queued.step.ends(info.attempt) {
        Ends::Flaky if queued.hangs() => {
            ctx.canceled().await;
            Err(ctx.stopped("nobody wants it any more"))
        }
        Ends::Flaky => Err(StepError::new(FLAKY, "as planned")),
        Ends::Refused => Err(StepError::new(REFUSED, queued.step.nonce).non_retryable()),
        Ends::Well => Ok(queued.step.result()),
    }
}

async fn run_step(shared: &Shared, step: Step, doubt: Option<Doubt>) -> String {
    let name = shared.program.step_name(&step, shared.build);
    let (effects, books) = (Arc::clone(&shared.effects), Arc::clone(&shared.effects));
    let (ends, result) = (step.ends(1), step.result());
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
            Doubt::Retry if books.keeps_books() && ends == Ends::Well => asks(books, result),
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

/// Asks the receiver of the effect, which is all that the step's result depends on.
fn asks(effects: Arc<dyn Effects>, result: String) -> InDoubt<String> {
    InDoubt::verify(move || {
        let (effects, result) = (Arc::clone(&effects), result.clone());
        async move {
            let Some(info) = step_info() else { return Err(StepError::new("Outside", "not in a step")) };
            Ok(effects.happened(&info).await?.then_some(result))
        }
    })
}
