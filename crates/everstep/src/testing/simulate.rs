//! A scenario under every kind of trouble, drawn from seeds.

use std::fmt;
use std::ops::Range;

use everstep_core::{Failure, RunStatus};
use serde::de::DeserializeOwned;

use super::faults::Faults;
use super::{Effects, Error, History, Scenario, TestEnv, replayer};
use crate::payload;

/// Names the one seed that is to be played, and no other.
const SEED: &str = "EVERSTEP_SIM_SEED";

/// Plays `scenario` once without trouble, then once for each seed with the trouble that the seed draws: workers
/// that die before and after each effect and each commit or hang until their lease is over, messages that come
/// late or twice, steps that overtake each other, a database clock that jumps, runs that are let go of whenever
/// they wait. `environment` makes a fresh one each time.
///
/// Every run has to end, and its history has to bring the same code to the same end once more. What else has to
/// hold is said by [`Simulation::same_result`] and [`Simulation::invariant`].
///
/// ```
/// use everstep::testing::{Mock, Scenario, TestEnv, simulate};
/// use everstep::{Ctx, StepError, WorkflowError};
/// use std::time::Duration;
///
/// async fn order(ctx: Ctx, item: String) -> Result<String, WorkflowError> {
///     ctx.step("charge", || async { Ok::<_, StepError>(()) }).await?;
///     ctx.signal::<bool>("approve").await?;
///     ctx.step("ship", || async { Ok::<_, StepError>(()) }).await?;
///     Ok(item)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), everstep::testing::SimulationFailed> {
/// let scenario = Scenario::new("order", "book").signal_after(Duration::from_secs(5), "approve", &true);
/// simulate(|| TestEnv::new().register("order", order).mock("ship", Mock::returns(())), scenario)
///     .seeds(0..50)
///     .same_result()
///     .invariant("one charge for each key", |end| end.effects().of("charge").distinct_keys() == 1)
///     .run()
///     .await?;
/// # Ok(())
/// # }
/// ```
pub fn simulate<F: Fn() -> TestEnv>(environment: F, scenario: Scenario) -> Simulation<F> {
    Simulation { environment, scenario, seeds: 0..100, same_result: false, invariants: Vec::new() }
}

type Invariant = Box<dyn Fn(&Outcome) -> bool + Send + Sync>;

/// A scenario and what has to hold, whatever goes wrong.
#[must_use = "nothing is played until `run`"]
pub struct Simulation<F> {
    environment: F,
    scenario: Scenario,
    seeds: Range<u64>,
    same_result: bool,
    invariants: Vec<(String, Invariant)>,
}

impl<F> fmt::Debug for Simulation<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("scenario", &self.scenario)
            .field("seeds", &self.seeds)
            .finish_non_exhaustive()
    }
}

/// How a run ended under one seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    status: RunStatus,
    result: everstep_core::Payload,
    failure: Option<Failure>,
    history: History,
    effects: Effects,
}

impl Outcome {
    /// How.
    pub fn status(&self) -> RunStatus {
        self.status
    }

    /// What the workflow returned, if it did and that is a `T`.
    pub fn result<T: DeserializeOwned>(&self) -> Option<T> {
        if self.status == RunStatus::Completed { payload::decode(&self.result).ok() } else { None }
    }

    /// Why it did not complete.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Its events.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What was done to the outside world.
    pub fn effects(&self) -> &Effects {
        &self.effects
    }

    fn ended_as(&self, other: &Self) -> bool {
        let kind = |outcome: &Self| outcome.failure.as_ref().map(|f| f.kind.clone());
        self.status == other.status
            && kind(self) == kind(other)
            && replayer::same(&self.result, &other.result)
    }

    fn text(&self) -> String {
        match &self.failure {
            Some(failure) => format!("{}: {}: {}", self.status, failure.kind, failure.message),
            None => format!("{} with {}", self.status, replayer::text(&self.result)),
        }
    }
}

/// What was played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Seeds.
    pub seeds: u64,
    /// Workers that died, over all seeds.
    pub deaths: u64,
    /// Places at which a worker can die in the run without trouble. With at least as many seeds in a row, one has
    /// died at each of them.
    pub places: u64,
}

/// A seed under which something does not hold. Its text, also as `Debug`, is the whole story.
#[derive(Clone)]
pub struct SimulationFailed(Box<Failed>);

#[derive(Clone)]
struct Failed {
    /// `None` for the run without trouble.
    seed: Option<u64>,
    problem: String,
    story: Vec<String>,
    history: Option<History>,
    effects: Effects,
}

impl SimulationFailed {
    /// The seed; `None` when the run does not even go well without trouble.
    pub fn seed(&self) -> Option<u64> {
        self.0.seed
    }

    /// What does not hold.
    pub fn problem(&self) -> &str {
        &self.0.problem
    }

    /// What was done to the outside world.
    pub fn effects(&self) -> &Effects {
        &self.0.effects
    }

    /// The events of the run.
    pub fn history(&self) -> Option<&History> {
        self.0.history.as_ref()
    }
}

impl fmt::Display for SimulationFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failed { seed, problem, story, history, effects } = &*self.0;
        match seed {
            Some(seed) => writeln!(f, "seed {seed}: {problem}")?,
            None => writeln!(f, "without any trouble: {problem}")?,
        }
        if !story.is_empty() {
            writeln!(f, "\nwhat went wrong on the way:")?;
            story.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        if !effects.is_empty() {
            writeln!(f, "\neffects:")?;
            effects.iter().try_for_each(|effect| writeln!(f, "  {effect}"))?;
        }
        if let Some(history) = history {
            write!(f, "\nhistory:\n{history}")?;
        }
        match seed {
            Some(seed) => write!(f, "\nrepeat it alone with {SEED}={seed}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for SimulationFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for SimulationFailed {}

impl<F: Fn() -> TestEnv> Simulation<F> {
    /// Which seeds. Default: 0 to 99. `EVERSTEP_SIM_SEED` in the environment plays that one alone.
    pub fn seeds(mut self, seeds: Range<u64>) -> Self {
        self.seeds = seeds;
        self
    }

    /// The run ends as it does without trouble: the same status and result, or the same kind of failure. Not for
    /// workflows whose result depends on what comes first: delays and jumps of the clock decide that.
    pub fn same_result(mut self) -> Self {
        self.same_result = true;
        self
    }

    /// Something that holds at the end of every run, in words and as a test.
    pub fn invariant(
        mut self,
        holds: impl Into<String>,
        test: impl Fn(&Outcome) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.invariants.push((holds.into(), Box::new(test)));
        self
    }

    /// Plays all of it, up to the first seed under which something does not hold.
    ///
    /// # Errors
    /// [`SimulationFailed`].
    pub async fn run(self) -> Result<Report, SimulationFailed> {
        let (calm, places) = {
            let (env, outcome) = self.play(None, Faults::none()).await?;
            (outcome, env.faults().points())
        };
        self.check(None, &calm, &calm, &[])?;
        let only = std::env::var(SEED).ok().and_then(|seed| seed.parse::<u64>().ok());
        let seeds = only.map_or(self.seeds.clone(), |seed| seed..seed.saturating_add(1));
        let mut report = Report { places, ..Report::default() };
        for seed in seeds {
            let (env, outcome) = self.play(Some(seed), Faults::drawn(seed, places)).await?;
            self.check(Some(seed), &outcome, &calm, env.faults().story())?;
            report.seeds += 1;
            report.deaths += u64::from(env.faults().deaths());
        }
        Ok(report)
    }

    async fn play(&self, seed: Option<u64>, faults: Faults) -> Result<(TestEnv, Outcome), SimulationFailed> {
        let mut env = (self.environment)();
        env.plan_faults(faults);
        let failed = |env: &TestEnv, history: Option<History>, error: Error| {
            let story = env.faults().story().to_vec();
            let problem = error.to_string();
            SimulationFailed(Box::new(Failed { seed, problem, story, history, effects: env.effects() }))
        };
        let run = match env.begin(self.scenario.clone()) {
            Ok(run) => run,
            Err(error) => return Err(failed(&env, None, error)),
        };
        let ended = match env.finish(run).await {
            Ok(()) => env.check_replay(run),
            Err(error) => Err(error),
        };
        let history = env.history(env.latest(run));
        match (ended, history, env.folded(run)) {
            (Ok(()), Ok(history), Ok(end)) => {
                let outcome = Outcome {
                    status: end.status(),
                    result: end.result().clone(),
                    failure: end.failure().cloned(),
                    history,
                    effects: env.effects(),
                };
                Ok((env, outcome))
            }
            (Err(error), history, _) => Err(failed(&env, history.ok(), error)),
            (_, Err(error), _) | (_, _, Err(error)) => Err(failed(&env, None, error)),
        }
    }

    fn check(
        &self,
        seed: Option<u64>,
        outcome: &Outcome,
        calm: &Outcome,
        story: &[String],
    ) -> Result<(), SimulationFailed> {
        let broken = self.invariants.iter().find(|(_, test)| !test(outcome));
        let problem = match broken {
            Some((holds, _)) => format!("it does not hold that: {holds}"),
            None if self.same_result && !outcome.ended_as(calm) => {
                format!("the run is {}; without trouble it is {}", outcome.text(), calm.text())
            }
            None => return Ok(()),
        };
        Err(SimulationFailed(Box::new(Failed {
            seed,
            problem,
            story: story.to_vec(),
            history: Some(outcome.history.clone()),
            effects: outcome.effects.clone(),
        })))
    }
}
