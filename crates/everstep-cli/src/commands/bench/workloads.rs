//! The workflows that are measured, and the worker that hosts them.

use std::time::Duration;

use everstep::{Ctx, StepError, Worker, WorkflowError, join_all};

use crate::fail::Fail;

const STEPS: &str = "bench-steps";
const FAN_OUT: &str = "bench-fan-out";
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
}

impl Workload {
    /// With so many clients at one time, or as many as usual if none are given.
    pub(super) fn plans(self, concurrency: &[usize]) -> Vec<Plan> {
        let (name, workflow, steps, usual) = match self {
            Self::W1 => ("w1", STEPS, 10, &[1, 64, 256][..]),
            Self::W2 => ("w2", STEPS, 1, &[1][..]),
            Self::FanOut => ("fan-out", FAN_OUT, 100, &[1, 8][..]),
            Self::W3 | Self::W4 | Self::W5 | Self::Growth => return Vec::new(),
        };
        let clients = if concurrency.is_empty() || self == Self::W2 { usual } else { concurrency };
        let plan = |clients: usize| Plan { name: format!("{name}@{clients}"), workflow, steps, clients };
        clients.iter().map(|&clients| plan(clients.max(1))).collect()
    }
}

/// Hosts the workflows until it is killed.
pub(super) async fn host(address: String) -> Result<(), Fail> {
    let worker = Worker::builder(address)
        .run_slots(10_000)
        .register(STEPS, steps)
        .register(FAN_OUT, fan_out)
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
}
