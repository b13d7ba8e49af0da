//! What was done to the outside world, execution by execution: more than the history says.

use std::collections::BTreeSet;
use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use everstep_core::{Event, EventBody, Failure, Payload, RunId, Timestamp};

use crate::StepInfo;

/// One execution of an attempt: the step's closure, or its mock, was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Which attempt of which step, for which holder of the run, and the key that it gave its receiver.
    pub info: StepInfo,
    /// When (virtual time).
    pub at: DateTime<Utc>,
    /// What it returned.
    pub result: Result<Payload, Failure>,
    /// The history has its end. If not, its worker died before that, and another one did it again.
    pub recorded: bool,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StepInfo { name, step_id, attempt, epoch, idempotency_key, .. } = &self.info;
        let end = match &self.result {
            Ok(_) => "ok".to_owned(),
            Err(failure) => format!("{}: {}", failure.kind, failure.message),
        };
        let recorded = if self.recorded { "recorded" } else { "NOT RECORDED" };
        let at = self.at.to_rfc3339_opts(SecondsFormat::Millis, true);
        write!(
            f,
            "{at}  '{name}' #{step_id} attempt {attempt} epoch {epoch} key {idempotency_key}: {end}, {recorded}"
        )
    }
}

/// Executions in the order in which they happened. Its `Display` is one line for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects(Vec<Effect>);

impl Effects {
    /// How many there were.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there were none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One by one.
    pub fn iter(&self) -> std::slice::Iter<'_, Effect> {
        self.0.iter()
    }

    /// Those of the steps with this name.
    #[must_use]
    pub fn of(&self, step: &str) -> Self {
        self.0.iter().filter(|e| e.info.name == step).cloned().collect()
    }

    /// Those that returned a value.
    #[must_use]
    pub fn succeeded(&self) -> Self {
        self.0.iter().filter(|e| e.result.is_ok()).cloned().collect()
    }

    /// How many effects a receiver has that knows each idempotency key once.
    pub fn distinct_keys(&self) -> usize {
        self.0.iter().map(|e| &e.info.idempotency_key).collect::<BTreeSet<_>>().len()
    }

    /// Notes which of them have an end in the history of their run.
    pub(super) fn mark_recorded<'a>(&mut self, histories: impl IntoIterator<Item = (RunId, &'a [Event])>) {
        let (mut ended, mut settled, mut guarded) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (run, history) in histories {
            for event in history {
                match &event.body {
                    EventBody::StepCompleted { step, attempt, .. }
                    | EventBody::StepFailed { step, attempt, .. } => {
                        ended.insert((run, step.0, *attempt, event.epoch));
                        settled.insert((run, step.0, *attempt));
                    }
                    EventBody::StepResolved(resolved) => {
                        settled.insert((run, resolved.step.0, resolved.attempt));
                    }
                    // The attempts of a guarded step run once each, whoever records their end.
                    EventBody::StepStarted { step, attempt, in_doubt: Some(_), .. } => {
                        guarded.insert((run, step.0, *attempt));
                    }
                    _ => {}
                }
            }
        }
        for effect in &mut self.0 {
            let StepInfo { run_id, step_id, attempt, epoch, .. } = effect.info;
            let which = (run_id, step_id, attempt);
            effect.recorded = ended.contains(&(run_id, step_id, attempt, epoch))
                // Of a queued step, whose workers have no epoch.
                || (epoch == 0 || guarded.contains(&which)) && settled.contains(&which);
        }
    }
}

impl FromIterator<Effect> for Effects {
    fn from_iter<I: IntoIterator<Item = Effect>>(effects: I) -> Self {
        Self(effects.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a Effects {
    type Item = &'a Effect;
    type IntoIter = std::slice::Iter<'a, Effect>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|effect| writeln!(f, "{effect}"))
    }
}

pub(super) fn date(at: Timestamp) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(at.as_micros()).unwrap_or_default()
}

/// RFC 3339 in UTC with milliseconds.
pub(super) fn instant(at: Timestamp) -> String {
    date(at).to_rfc3339_opts(SecondsFormat::Millis, true)
}
