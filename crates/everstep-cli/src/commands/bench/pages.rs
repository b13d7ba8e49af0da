//! How long a page takes: of the list of runs, by several filters, and of a history.

use std::time::Duration;

use everstep::client::RunListFilter;
use everstep::{Client, RunStatus};
use hdrhistogram::Histogram;
use serde_json::Value;
use tokio::time::Instant;

use super::figures::{Figures, Goal};
use super::fill::{Filled, RARE_TYPE};
use crate::fail::Fail;

const PAGE_MS: Goal = Goal::AtMost(50.0);
/// Pages of each kind, unless they take too long.
const PAGES: usize = 1_000;
const PAGES_MIN: usize = 20;
const LONGEST: Duration = Duration::from_secs(10);
/// Runs on a page of those by which the depth of the list is walked.
const STRIDE: i32 = 1_000;
/// Places in the list from which pages are taken.
const PLACES: usize = 200;

/// A kind of page, and where it may begin.
struct Kind<'a> {
    name: &'static str,
    filter: RunListFilter,
    /// Of this filter: a token is good for no other.
    tokens: &'a [String],
}

/// Pages of a log whose runs are known by `sample`.
pub(super) async fn measure(address: &str, sample: &[Filled], figures: &mut Figures) -> Result<(), Fail> {
    let client = Client::connect(address)?;
    let all = RunListFilter::default();
    let places = places(&client).await?;
    let newest = [String::new()];
    let kinds = [
        Kind { name: "newest", filter: all.clone(), tokens: &newest },
        Kind { name: "anywhere", filter: all.clone(), tokens: &places },
        Kind { name: "by status, 1 in 50", filter: by_status(RunStatus::Failed), tokens: &newest },
        Kind { name: "by status, none", filter: by_status(RunStatus::Blocked), tokens: &newest },
        Kind { name: "by type, 1 in 1000", filter: by_type(RARE_TYPE), tokens: &newest },
        Kind { name: "by type, none", filter: by_type("growth-unknown"), tokens: &newest },
    ];
    for Kind { name, filter, tokens } in &kinds {
        let times = times(async |at| client.list(filter, &tokens[at % tokens.len()]).await.map(drop)).await?;
        add(figures, &format!("growth list {name}"), &times);
    }
    if sample.is_empty() {
        return Ok(());
    }
    let times_by_id = times(async |at| {
        let workflow_id = Some(sample[at % sample.len()].workflow_id.clone());
        let filter = RunListFilter { workflow_id, ..RunListFilter::default() };
        client.list(&filter, "").await.map(drop)
    });
    add(figures, "growth list by workflow id", &times_by_id.await?);
    let times_of_history = times(async |at| read(&client, &sample[at % sample.len()]).await);
    add(figures, "growth history", &times_of_history.await?);
    Ok(())
}

async fn read(client: &Client, run: &Filled) -> Result<(), everstep::ClientError> {
    let mut history = client.handle::<Value>(run.run_id).history(0, false).await?;
    while history.next().await?.is_some() {}
    Ok(())
}

fn by_status(status: RunStatus) -> RunListFilter {
    RunListFilter { statuses: vec![status], ..RunListFilter::default() }
}

fn by_type(workflow_type: &str) -> RunListFilter {
    RunListFilter { workflow_type: Some(workflow_type.to_owned()), ..RunListFilter::default() }
}

/// Where pages begin, all along the list.
async fn places(client: &Client) -> Result<Vec<String>, Fail> {
    let filter = RunListFilter { page_size: STRIDE, ..RunListFilter::default() };
    let mut tokens = vec![String::new()];
    loop {
        let last = tokens.last().cloned().unwrap_or_default();
        let token = client.list(&filter, &last).await?.next_page_token;
        if token.is_empty() {
            break;
        }
        tokens.push(token);
    }
    // Far apart from each other, in an order that goes to and fro.
    let step = (tokens.len() / PLACES).max(1);
    let mut places: Vec<String> = tokens.into_iter().step_by(step).collect();
    let half = places.len() / 2;
    for at in (0..half).step_by(2) {
        places.swap(at, at + half);
    }
    Ok(places)
}

/// Calls it again and again, with 0, 1, 2 …; the first call is not counted.
async fn times<E: Into<Fail>>(call: impl AsyncFn(usize) -> Result<(), E>) -> Result<Histogram<u64>, Fail> {
    let mut micros =
        Histogram::<u64>::new_with_bounds(1, 600_000_000, 3).map_err(|e| Fail::refused(e.to_string()))?;
    call(0).await.map_err(Into::into)?;
    let began = Instant::now();
    for at in 1..=PAGES {
        if began.elapsed() > LONGEST && at > PAGES_MIN {
            break;
        }
        let at_call = Instant::now();
        call(at).await.map_err(Into::into)?;
        micros.saturating_record(u64::try_from(at_call.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok(micros)
}

fn add(figures: &mut Figures, name: &str, micros: &Histogram<u64>) {
    let ms = |q: f64| micros.value_at_quantile(q) as f64 / 1_000.0;
    figures.add(format!("{name} p50 ms"), ms(0.5));
    figures.add_with_goal(format!("{name} p99 ms"), ms(0.99), PAGE_MS);
}
