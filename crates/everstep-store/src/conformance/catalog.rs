//! Questions about runs and namespaces.

use everstep_core::{RunRow, RunStatus, TaskRow, Timer, TimerKey, Timestamp, Write};

use super::sample::{MANY, Sample, commit, new_run, new_session, started, tables, unique};
use super::{Subject, ok};
use crate::{PageToken, RunFilter};

/// Goal: runs are listed newest first, by every filter, page by page.
pub async fn runs_are_listed_newest_first_by_filter(subject: &Subject) {
    let store = &*subject.store;
    let namespace = unique("ns");
    let mut rows: Vec<RunRow> = Vec::new();
    for (workflow_id, workflow_type, status) in [
        ("a", "order", RunStatus::Completed),
        ("b", "order", RunStatus::Running),
        ("a", "refund", RunStatus::Failed),
        ("c", "order", RunStatus::Blocked),
        ("a", "order", RunStatus::TimedOut),
    ] {
        let sample = Sample::of(subject, &namespace, workflow_id).await;
        let expected =
            ok(store.find_start(&namespace, workflow_id, "none").await).current.map(|(run, _)| run);
        commit(store, vec![sample.start(expected)]).await;
        let closed_at = status.is_closed().then_some(sample.at);
        let row = RunRow { workflow_type: workflow_type.to_owned(), status, closed_at, ..sample.row(2) };
        commit(store, vec![sample.with(2, vec![Write::Run(Box::new(row.clone()))])]).await;
        rows.push(row);
    }
    started(subject).await;
    rows.reverse();
    let filter = RunFilter { namespace: namespace.clone(), ..RunFilter::default() };
    let list = async |filter: &RunFilter, page, limit| ok(store.list_runs(filter, page, limit).await);
    assert_eq!(list(&filter, None, MANY).await, rows);
    assert_eq!(list(&filter, None, 2).await, rows[..2]);
    assert_eq!(list(&filter, Some(PageToken(rows[1].run_id)), 2).await, rows[2..4]);
    assert!(list(&filter, Some(PageToken(rows[4].run_id)), 2).await.is_empty());
    let of =
        |pick: &dyn Fn(&RunRow) -> bool| rows.iter().filter(|row| pick(row)).cloned().collect::<Vec<_>>();
    let by_id = RunFilter { workflow_id: Some("a".to_owned()), ..filter.clone() };
    assert_eq!(list(&by_id, None, MANY).await, of(&|row| row.workflow_id == "a"));
    assert_eq!(list(&by_id, Some(PageToken(rows[0].run_id)), 1).await, rows[2..3]);
    let by_type = RunFilter { workflow_type: Some("order".to_owned()), ..filter.clone() };
    assert_eq!(list(&by_type, None, MANY).await, of(&|row| row.workflow_type == "order"));
    let statuses = vec![RunStatus::Running, RunStatus::TimedOut];
    let by_status = RunFilter { statuses: statuses.clone(), ..filter.clone() };
    assert_eq!(list(&by_status, None, MANY).await, of(&|row| statuses.contains(&row.status)));
    let by_all =
        RunFilter { statuses: vec![RunStatus::Failed], workflow_type: Some("refund".to_owned()), ..by_id };
    assert_eq!(list(&by_all, None, MANY).await, rows[2..3]);
    let none = RunFilter { namespace: unique("ns"), ..filter };
    assert!(list(&none, None, MANY).await.is_empty());
}

/// Goal: of the runs asked for, the closed ones are named; open and unknown ones are not.
pub async fn closed_runs_are_told_apart(subject: &Subject) {
    let store = &*subject.store;
    let mut asked = vec![new_run()];
    let mut expected = Vec::new();
    for status in RunStatus::ALL {
        let sample = started(subject).await;
        let row =
            if status.is_closed() { sample.closed(2, status) } else { RunRow { status, ..sample.row(2) } };
        commit(store, vec![sample.with(2, vec![Write::Run(Box::new(row))])]).await;
        asked.push(sample.run);
        expected.extend(status.is_closed().then_some(sample.run));
    }
    let mut closed = ok(store.closed_among(&asked).await);
    closed.sort();
    assert_eq!(closed, expected);
    assert!(ok(store.closed_among(&[]).await).is_empty());
}

/// Goal: the tables of a run show every field of its row, its timers, task and wakes.
pub async fn tables_of_a_run_are_shown(subject: &Subject) {
    let (store, sample) = (&*subject.store, started(subject).await);
    assert_eq!(ok(store.run_tables(new_run()).await), None);
    let row = RunRow {
        status: RunStatus::Blocked,
        owner: Some(new_session()),
        epoch: 7,
        build_id: "build".to_owned(),
        blocked: "expected \"a\", got 'b'".to_owned(),
        cancel_requested: true,
        closed_at: Some(Timestamp::MAX),
        ..sample.row(2)
    };
    let timer = Timer { key: TimerKey::RUN_TIMEOUT, fire_at: Timestamp::MAX };
    let writes = vec![
        Write::Run(Box::new(row.clone())),
        Write::TimerSet(timer),
        Write::TaskSet(TaskRow::of_queue(sample.queue.clone())),
        Write::WakeSet { seq: 2 },
    ];
    commit(store, vec![sample.with(2, writes)]).await;
    let shown = tables(store, sample.run).await;
    assert_eq!(shown.projection.row, row);
    assert_eq!(shown.projection.timers, [timer]);
    assert_eq!(shown.projection.task, Some(TaskRow::of_queue(sample.queue.clone())));
    assert_eq!(shown.wakes, [2]);
    let record = ok(store.get_run(sample.run).await);
    assert_eq!(record.map(|r| (r.row, r.tail_seq)), Some((row, 2)));
    assert_eq!(ok(store.get_run(new_run()).await), None);
}

/// Goal: a namespace is made once, found by name and listed in order; `default` is there from the start.
pub async fn namespaces_are_made_once_and_listed(subject: &Subject) {
    let store = &*subject.store;
    let default = ok(store.get_namespace("default").await);
    assert_eq!(default.map(|n| n.name), Some("default".to_owned()));
    let prefix = unique("zz");
    let names = ["a", "b", "c"].map(|suffix| format!("{prefix}-{suffix}"));
    let before = subject.now().await;
    for name in names.iter().rev() {
        assert!(ok(store.create_namespace(name, "for people").await));
    }
    assert!(!ok(store.create_namespace(&names[0], "changed").await), "it exists");
    let found = ok(store.get_namespace(&names[0]).await);
    assert_eq!(found.as_ref().map(|n| n.description.as_str()), Some("for people"));
    assert!(found.is_some_and(|n| n.created_at >= before));
    assert_eq!(ok(store.get_namespace(&unique("ns")).await), None);
    let list = async |after: &str, limit| {
        ok(store.list_namespaces(after, limit).await).into_iter().map(|n| n.name).collect::<Vec<_>>()
    };
    assert_eq!(list(&prefix, 2).await, names[..2]);
    assert_eq!(list(&names[1], 1).await, names[2..]);
    assert!(list("", MANY).await.contains(&"default".to_owned()));
}
