//! How the children of a run stand.

use std::collections::BTreeMap;

use everstep::Client;
use everstep::client::{RunDescription, RunListFilter};
use serde_json::{Value, json};

use crate::fail::Fail;

/// Runs that are counted: one page of a list, so that a run with any number of children is shown at once.
const COUNTED_MAX: i32 = 1_000;

/// The newest runs that a run's workflow started.
pub(super) struct Children {
    by_status: BTreeMap<&'static str, u32>,
    /// There are more.
    more: bool,
}

/// Counts the runs that this run's workflow started.
pub(super) async fn count(client: Client, run: &RunDescription) -> Result<Children, Fail> {
    let client = client.namespace(run.run.namespace.clone());
    let filter =
        RunListFilter { parent: Some(run.run_id), page_size: COUNTED_MAX, ..RunListFilter::default() };
    let page = client.list(&filter, "").await?;
    let mut by_status = BTreeMap::new();
    for child in &page.runs {
        *by_status.entry(child.status.as_str()).or_default() += 1;
    }
    Ok(Children { by_status, more: !page.next_page_token.is_empty() })
}

impl Children {
    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!(self.by_status)
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let counts: Vec<String> = self.by_status.iter().map(|(s, count)| format!("{count} {s}")).collect();
        let more = if self.more { format!(" (the newest {COUNTED_MAX})") } else { String::new() };
        format!("{}{more}", counts.join(", "))
    }

    /// Whether only the newest were counted.
    pub(super) fn more(&self) -> bool {
        self.more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_counted_is_told() {
        let mut children = Children { by_status: [("failed", 2), ("running", 998)].into(), more: true };
        assert_eq!(children.text(), "2 failed, 998 running (the newest 1000)");
        children.more = false;
        assert_eq!(children.text(), "2 failed, 998 running");
        assert_eq!(children.json(), json!({"failed": 2, "running": 998}));
    }
}
