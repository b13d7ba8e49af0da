//! When a run starts, and how often it is tried.

use std::time::Duration;

use everstep::RetryPolicy;
use everstep::client::Start;

use crate::node::parse_duration;

#[derive(Debug, clap::Args)]
pub(crate) struct Later {
    /// How long it has no worker yet, like 30s or 2h
    #[arg(long, value_parser = parse_duration)]
    start_delay: Option<Duration>,
    /// Try again in a new run when it fails or times out: the attempts in all (0 for no limit), or like
    /// attempts=5,initial=1s,coefficient=2,maximum=1m,final=KIND
    #[arg(long, value_parser = parse_retry, value_name = "POLICY")]
    retry: Option<RetryPolicy>,
}

impl Later {
    pub(super) fn of<R: serde::de::DeserializeOwned>(self, mut start: Start<R>) -> Start<R> {
        if let Some(delay) = self.start_delay {
            start = start.start_delay(delay);
        }
        if let Some(policy) = self.retry {
            start = start.retry(policy);
        }
        start
    }
}

pub(super) fn parse_retry(text: &str) -> Result<RetryPolicy, String> {
    let mut policy = RetryPolicy::default();
    for part in text.split(',') {
        let (name, value) = part.split_once('=').unwrap_or(("attempts", part));
        let problem = |what: &str| format!("{name} must be {what}");
        match name {
            "attempts" => {
                policy.maximum_attempts = value.parse().map_err(|_| problem("a number; 0 for no limit"))?;
            }
            "initial" => policy.initial_interval = parse_duration(value).map_err(|e| problem(&e))?.into(),
            "maximum" => policy.maximum_interval = parse_duration(value).map_err(|e| problem(&e))?.into(),
            "coefficient" => {
                policy.backoff_coefficient = value.parse().map_err(|_| problem("a number of at least 1"))?;
            }
            "final" => policy.non_retryable_kinds.push(value.to_owned()),
            _ => return Err(format!("'{name}' is not attempts, initial, coefficient, maximum or final")),
        }
    }
    // A first delay alone says nothing against longer ones.
    policy.maximum_interval = policy.maximum_interval.max(policy.initial_interval);
    policy.validate().map_err(|e| e.to_string())?;
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_from_one_argument() {
        assert_eq!(parse_retry("3").unwrap().maximum_attempts, 3);
        let policy = parse_retry("attempts=5,initial=2m,coefficient=1.5,final=A,final=B").unwrap();
        assert_eq!((policy.maximum_attempts, policy.backoff_coefficient), (5, 1.5));
        assert_eq!(policy.initial_interval, Duration::from_secs(120).into());
        assert_eq!(policy.maximum_interval, policy.initial_interval);
        assert_eq!(policy.non_retryable_kinds, ["A", "B"]);
        for wrong in
            ["", "often", "attempts=-1", "initial=1", "coefficient=0.5", "coefficient=NaN", "delay=1s"]
        {
            assert!(parse_retry(wrong).is_err(), "{wrong}");
        }
    }
}
