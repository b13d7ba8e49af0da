//! A token opens the page that it was made for, and no other.

use everstep_core::RunStatus;
use tonic_types::StatusExt;

use super::*;

fn run() -> RunId {
    "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap()
}

fn filter(namespace: &str, workflow_type: Option<&str>, statuses: &[RunStatus]) -> RunFilter {
    RunFilter {
        namespace: namespace.to_owned(),
        workflow_id: None,
        workflow_type: workflow_type.map(str::to_owned),
        statuses: statuses.to_vec(),
        ..RunFilter::default()
    }
}

fn reason_of(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

#[test]
fn a_token_finds_its_place_again() {
    let filter = filter("default", Some("order"), &[RunStatus::Running, RunStatus::Failed]);
    let token = runs_token(&filter, run());
    assert_eq!(runs_page(&filter, &token).unwrap(), Some(PageToken(run())));
    assert_eq!(runs_page(&filter, "").unwrap(), None);
    let reordered = RunFilter { statuses: vec![RunStatus::Failed, RunStatus::Running], ..filter };
    assert_eq!(runs_page(&reordered, &token).unwrap(), Some(PageToken(run())));
    assert_eq!(namespaces_page(&namespaces_token("team-a")).unwrap(), "team-a");
    assert_eq!(namespaces_page("").unwrap(), "");
}

#[test]
fn a_token_of_another_question_is_refused() {
    let token = runs_token(&filter("default", Some("order"), &[]), run());
    let others = [
        filter("other", Some("order"), &[]),
        filter("default", None, &[]),
        filter("default", Some("order"), &[RunStatus::Running]),
        RunFilter { workflow_id: Some("order".to_owned()), ..filter("default", None, &[]) },
    ];
    for other in others {
        assert_eq!(reason_of(&runs_page(&other, &token).unwrap_err()), "INVALID_PAGE_TOKEN", "{other:?}");
    }
    assert_eq!(reason_of(&namespaces_page(&token).unwrap_err()), "INVALID_PAGE_TOKEN");
    assert_eq!(reason_of(&namespaces_page(&namespaces_token("a\0b")).unwrap_err()), "INVALID_PAGE_TOKEN");
}

#[test]
fn garbage_is_refused() {
    let filter = filter("default", None, &[]);
    let good = runs_token(&filter, run());
    let cut = &good[..good.len() - 2];
    let version = format!("02{}", &good[2..]);
    let long = format!("{good}00");
    for bad in ["x", "zz", "00", "é", "+1", cut, &version, &long, &"0".repeat(100_000), &good[1..]] {
        let shown: String = bad.chars().take(60).collect();
        assert_eq!(reason_of(&runs_page(&filter, bad).unwrap_err()), "INVALID_PAGE_TOKEN", "{shown}");
    }
}
