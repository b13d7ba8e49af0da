//! The workflows that are measured, and the worker that hosts them.

use std::time::Duration;

use everstep::{Ctx, StepCtx, StepError, StepType, Worker, WorkflowError, join_all};

use super::figures::Goal;
use crate::fail::Fail;

const STEPS: &str = "bench-steps";
const FAN_OUT: &str = "bench-fan-out";
const QUEUED: &str = "bench-queued";
const CHILDREN: &str = "bench-children";
const CHILD: &str = "bench-child";
/// Steps or children of W6.
const FAN: u32 = 100;
/// Takes one signal and ends.
pub(super) const WAITS: &str = "bench-waits";
/// Sleeps until an instant, in microseconds since 1970.
pub(super) const SLEEPS: &str = "bench-sleeps";
/// So many steps, then one signal.
pub(super) const REPLAYS: &str = "bench-replays";
/// The signal that the last two wait for.
pub(super) const GO: &str = "go";

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Workload {
    /// Ten inline steps, one after the other
    W1,
    /// One inline step, one client
    W2,
    /// A hundred inline steps at one time, then their join
    FanOut,
    /// Many runs parked on one signal: what they cost, and how soon one of them wakes
    W3,
    /// Many timers: how late they are
    W4,
    /// A run of many recorded steps whose worker is gone: how soon it has passed them
    W5,
    /// A hundred at one time, then their join: inline steps, queued steps, children
    W6,
    /// How it goes when the log is long and many runs are open
    Growth,
}

/// One workload as it is measured once.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// What its figures are called.
    pub(super) name: String,
    pub(super) workflow: &'static str,
    pub(super) steps: u32,
    pub(super) clients: usize,
    /// For the median latency, in multiples of i.
    pub(super) goal: Option<Goal>,
}

impl Workload {
    /// With so many clients at one time, or as many as usual if none are given.
    pub(super) fn plans(self, concurrency: &[usize]) -> Vec<Plan> {
        let (parts, usual) = match self {
            Self::W1 => (vec![("w1", STEPS, 10, None)], &[1, 64, 256][..]),
            Self::W2 => (vec![("w2", STEPS, 1, None)], &[1][..]),
            Self::FanOut => (vec![("fan-out", FAN_OUT, FAN, None)], &[1, 8][..]),
            Self::W6 => (
                vec![
                    ("w6 inline", FAN_OUT, FAN, Some(Goal::AtMost(20.0))),
                    ("w6 queued", QUEUED, FAN, None),
                    ("w6 children", CHILDREN, FAN, Some(Goal::AtMost(150.0))),
                ],
                &[1, 8][..],
            ),
            Self::W3 | Self::W4 | Self::W5 | Self::Growth => return Vec::new(),
        };
        let clients = if concurrency.is_empty() || self == Self::W2 { usual } else { concurrency };
        let plan = |(name, workflow, steps, goal), clients: usize| {
            // Goals are for one client: with more, a run waits for the others'.
            let goal = if clients == 1 { goal } else { None };
            Plan { name: format!("{name}@{clients}"), workflow, steps, clients, goal }
        };
        parts.into_iter().flat_map(|part| clients.iter().map(move |&c| plan(part, c.max(1)))).collect()
    }
}

/// Hosts the workflows until it is killed.
pub(super) async fn host(address: String) -> Result<(), Fail> {
    let worker = Worker::builder(address)
        .run_slots(10_000)
        .register(STEPS, steps)
        .step_slots(1_000)
        .register(FAN_OUT, fan_out)
        .register(QUEUED, queued)
        .register(CHILDREN, children)
        .register(CHILD, child)
        .register_step::<Make, _, _>(make)
        .register(WAITS, waits)
        .register(SLEEPS, sleeps)
        .register(REPLAYS, replays);
    Ok(worker.build()?.run().await?)
}

async fn steps(ctx: Ctx, count: u32) -> Result<u32, WorkflowError> {
    for number in 0..count {
        ctx.step("step", move || async move { Ok::<_, StepError>(result(number)) }).await?;
    }
    Ok(count)
}

async fn fan_out(ctx: Ctx, count: u32) -> Result<u32, WorkflowError> {
    let step = |number| ctx.step("step", move || async move { Ok::<_, StepError>(result(number)) });
    for done in join_all((0..count).map(step)).await {
        done?;
    }
    Ok(count)
}

/// A queued step that gives what an inline step gives.
struct Make;

impl StepType for Make {
    const NAME: &'static str = "make";
    type Input = u32;
    type Output = String;
}

async fn make(_: StepCtx, number: u32) -> Result<String, StepError> {
    Ok(result(number))
}

async fn queued(ctx: Ctx, count: u32) -> Result<u32, WorkflowError> {
    for done in join_all((0..count).map(|number| ctx.run::<Make>(number))).await {
        done?;
    }
    Ok(count)
}

async fn children(ctx: Ctx, count: u32) -> Result<u32, WorkflowError> {
    for done in join_all((0..count).map(|number| ctx.child::<String>(CHILD, number).into_future())).await {
        done?;
    }
    Ok(count)
}

async fn child(_: Ctx, number: u32) -> Result<String, WorkflowError> {
    Ok(result(number))
}

async fn waits(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    Ok(ctx.signal(GO).await?)
}

async fn sleeps(ctx: Ctx, due_micros: i64) -> Result<(), WorkflowError> {
    let left = due_micros.saturating_sub(ctx.now().timestamp_micros());
    ctx.sleep(Duration::from_micros(u64::try_from(left).unwrap_or(0))).await;
    Ok(())
}

pub(super) async fn replays(ctx: Ctx, count: u32) -> Result<u32, WorkflowError> {
    let done = steps(ctx.clone(), count).await?;
    let _: u32 = ctx.signal(GO).await?;
    Ok(done)
}

/// What a step returns: about a hundred bytes as JSON.
pub(super) fn result(number: u32) -> String {
    format!("{number:>03} a result of about one hundred bytes, as JSON text{:>40}", ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_as_given_or_as_usual_and_w2_has_one() {
        let clients = |workload: Workload, given: &[usize]| -> Vec<usize> {
            workload.plans(given).iter().map(|plan| plan.clients).collect()
        };
        assert_eq!(clients(Workload::W1, &[]), [1, 64, 256]);
        assert_eq!(clients(Workload::FanOut, &[]), [1, 8]);
        assert_eq!(clients(Workload::FanOut, &[3]), [3]);
        assert_eq!(clients(Workload::W2, &[3]), [1]);
        assert_eq!(Workload::W1.plans(&[16])[0].name, "w1@16");
    }

    #[test]
    fn w6_is_measured_with_one_client_and_eight_and_has_its_goals_with_one() {
        let plans = Workload::W6.plans(&[]);
        let names: Vec<&str> = plans.iter().map(|plan| plan.name.as_str()).collect();
        let kinds = ["w6 inline", "w6 queued", "w6 children"];
        let expected: Vec<String> = kinds.iter().flat_map(|k| [1, 8].map(|c| format!("{k}@{c}"))).collect();
        assert_eq!(names, expected);
        let with_goal: Vec<&str> =
            plans.iter().filter(|p| p.goal.is_some()).map(|p| p.name.as_str()).collect();
        assert_eq!(with_goal, ["w6 inline@1", "w6 children@1"]);
    }
}
