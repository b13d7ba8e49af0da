//! Which code tasks wait for, which is there, and what was allowed.

use everstep_core::{Duration, QueueKey, RunId, TaskRow, Write};

use super::sample::{Sample, commit, new_session, session_row, unique};
use super::steps::{step_set, step_set_later};
use super::{Subject, ok};
use crate::{
    Administered, AllowedBuild, Change, PageToken, QueueCensus, QueueWorker, RunFilter, RunWant, Serves,
    ServesSteps, ServingGroup, SessionRow, WaitingFilter, WaitingGroup, WaitingType,
};

const MANY: usize = 10_000;
const HOUR: Duration = Duration::from_secs(3_600);

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&w| w.to_owned()).collect()
}

/// A run with a task, in a namespace of the check's own.
async fn waiting(
    subject: &Subject,
    namespace: &str,
    workflow_type: &str,
    build_id: &str,
) -> (RunId, TaskRow) {
    let sample = Sample::of(subject, namespace, &unique("order")).await;
    let queue = sample.queue.clone();
    let task = TaskRow { queue, workflow_type: workflow_type.to_owned(), build_id: build_id.to_owned() };
    commit(&*subject.store, vec![sample.start(None)]).await;
    commit(&*subject.store, vec![sample.with(2, vec![Write::TaskSet(task.clone())])]).await;
    (sample.run, task)
}

/// Goal: a task goes only to who has its type and its build; one that names no type goes to anybody.
pub async fn tasks_are_claimed_by_type_and_build(subject: &Subject) {
    let (store, namespace) = (&*subject.store, unique("ns"));
    let mut tasks = Vec::new();
    for (workflow_type, build) in [("a", ""), ("b", ""), ("", ""), ("a", "1"), ("a", "2"), ("c", "")] {
        tasks.push(waiting(subject, &namespace, workflow_type, build).await);
    }
    subject.pass(subject.now().await.after(Duration::from_secs(1))).await;
    let queue = tasks[0].1.queue.clone();
    let want = |types: &[&str], builds: &[&str]| RunWant {
        workflow_types: words(types),
        builds: words(builds),
        ..RunWant::of_queue(queue.clone())
    };
    let claim = async |wants: &[RunWant]| {
        let mut claimed = ok(store.claim_tasks(Some(wants), MANY).await);
        claimed.sort();
        claimed
    };
    assert_eq!(claim(&[want(&["x"], &["9"])]).await, [tasks[2].clone()], "one of any type");
    assert_eq!(claim(&[want(&["a"], &["1", "0"])]).await, [tasks[0].clone(), tasks[3].clone()]);
    let both = [want(&["b"], &[]), want(&["c"], &["2"])];
    assert_eq!(claim(&both).await, [tasks[1].clone(), tasks[5].clone()], "each want by itself");
    assert_eq!(claim(&[want(&[], &["2"])]).await, [tasks[4].clone()], "who names no types has them all");
}

/// Goal: who has just come is given what was looked at in vain before, and what nobody has looked at only when due.
pub async fn an_impatient_want_need_not_wait(subject: &Subject) {
    let (store, namespace) = (&*subject.store, unique("ns"));
    let looked_at = waiting(subject, &namespace, "a", "").await;
    let other = waiting(subject, &namespace, "b", "").await;
    subject.pass(subject.now().await.after(Duration::from_secs(1))).await;
    let queue = looked_at.1.queue.clone();
    let want = RunWant { workflow_types: words(&["a"]), ..RunWant::of_queue(queue) };
    for _ in 0..3 {
        let claimed = ok(store.claim_tasks(Some(&[RunWant { impatient: true, ..want.clone() }]), MANY).await);
        assert_eq!(claimed, std::slice::from_ref(&looked_at), "although its next look is later");
    }
    assert!(ok(store.claim_tasks(Some(&[want]), MANY).await).is_empty(), "not for the patient");
    let fresh = waiting(subject, &namespace, "c", "").await;
    let all = RunWant { impatient: true, ..RunWant::of_queue(other.1.queue.clone()) };
    let mut claimed = ok(store.claim_tasks(Some(&[all]), MANY).await);
    claimed.sort();
    assert_eq!(claimed, [looked_at, other], "{} is left to its hint", fresh.0);
}

/// Goal: a queue is shown with the open sessions that serve it, and with what waits in it by name.
pub async fn a_queue_knows_who_is_there_and_what_waits(subject: &Subject) {
    let (store, namespace) = (&*subject.store, unique("ns"));
    for workflow_type in ["order", "order", "ping"] {
        waiting(subject, &namespace, workflow_type, "").await;
    }
    let sample = Sample::of(subject, &namespace, &unique("order")).await;
    commit(store, vec![sample.start(None)]).await;
    let steps = [step_set(&sample, 1), step_set(&sample, 2), step_set_later(&sample, 3)];
    commit(store, vec![sample.with(2, steps.to_vec())]).await;
    let of = |task_queue: &str, steps: Option<&str>| Serves {
        task_queues: if steps.is_none() { words(&["other", task_queue]) } else { Vec::new() },
        workflow_types: words(&["ping"]),
        continues: Vec::new(),
        run_slots: 5,
        steps: steps.map(|name| ServesSteps {
            task_queues: words(&[task_queue]),
            names: words(&[name]),
            slots: 7,
        }),
    };
    let open = async |identity: &str, namespace: &str, serves: Serves| {
        let (identity, namespace) = (identity.to_owned(), namespace.to_owned());
        let row = SessionRow { identity, namespace, serves, ..session_row(new_session(), HOUR) };
        ok(store.open_session(&row).await);
        let SessionRow { session_id: session, identity, build_id, serves, .. } = row;
        QueueWorker { session, identity, build_id, serves }
    };
    let steps = open("b", &namespace, of("main", Some("convert"))).await;
    let runs = open("a", &namespace, of("main", None)).await;
    open("c", &namespace, of("ma", Some("transcode"))).await;
    open("d", &unique("ns"), of("main", None)).await;
    let gone = open("e", &namespace, of("main", None)).await;
    ok(store.close_session(gone.session).await);
    let waits = |name: &str, waiting| WaitingType { name: name.to_owned(), waiting };
    let census = QueueCensus {
        workers: vec![runs, steps],
        runs: vec![waits("order", 2), waits("ping", 1)],
        steps: vec![waits("transcode", 2)],
    };
    let queue = |task_queue: &str| QueueKey { task_queue: task_queue.to_owned(), ..sample.queue.clone() };
    let found = ok(store.queue_census(&queue("main"), MANY).await);
    assert_eq!(found, census);
    assert_eq!(found.runs_without_worker("main"), [&waits("order", 2)]);
    assert_eq!(found.steps_without_worker("main"), [&waits("transcode", 2)]);
    assert_eq!(ok(store.queue_census(&queue("main"), 1).await).workers.len(), 1);
    assert_eq!(ok(store.queue_census(&queue("nobody's"), MANY).await), QueueCensus::default());
}

/// Goal: tasks are counted by what they wait for once they are old enough, and open sessions by what they serve.
pub async fn a_census_is_taken(subject: &Subject) {
    let (store, namespace) = (&*subject.store, unique("ns"));
    let (first, order) = waiting(subject, &namespace, "order", "b1").await;
    let (second, _) = waiting(subject, &namespace, "order", "b1").await;
    let (third, ping) = waiting(subject, &namespace, "ping", "").await;
    let serves = Serves {
        task_queues: words(&["main", "other"]),
        workflow_types: words(&["ping"]),
        continues: words(&["b0"]),
        run_slots: 3,
        steps: None,
    };
    let session = || SessionRow {
        namespace: namespace.clone(),
        serves: serves.clone(),
        ..session_row(new_session(), HOUR)
    };
    let closed = session();
    for session in [&closed, &session(), &session()] {
        ok(store.open_session(session).await);
    }
    ok(store.close_session(closed.session_id).await);
    let own = async |age| {
        let mut census = ok(store.census(age, MANY).await);
        census.waiting.retain(|group| group.task.queue.namespace == namespace);
        census.serving.retain(|group| group.namespace == namespace);
        census
    };
    assert!(own(Duration::from_secs(60)).await.waiting.is_empty(), "younger than asked for");
    let census = own(Duration::ZERO).await;
    let counts: Vec<(TaskRow, u64)> = census.waiting.iter().map(|g| (g.task.clone(), g.runs)).collect();
    assert_eq!(counts, [(order.clone(), 2), (ping.clone(), 1)], "those of most runs first");
    assert!(census.waiting.iter().all(|group| group.oldest < HOUR), "{:?}", census.waiting);
    let there =
        ServingGroup { namespace: namespace.clone(), build_id: "build-1".to_owned(), serves, workers: 2 };
    assert_eq!(census.serving, [there]);
    let of = |tasks: &[&TaskRow]| RunFilter {
        namespace: namespace.clone(),
        waiting: Some(WaitingFilter {
            build: "*".to_owned(),
            tasks: tasks.iter().map(|&task| task.clone()).collect(),
        }),
        ..RunFilter::default()
    };
    let list = async |filter: RunFilter, page, limit| {
        let rows = ok(store.list_runs(&filter, page, limit).await);
        rows.into_iter().map(|row| row.run_id).collect::<Vec<_>>()
    };
    assert_eq!(list(of(&[]), None, MANY).await, []);
    assert_eq!(list(of(&[&order]), None, MANY).await, [second, first], "the newest first");
    assert_eq!(list(of(&[&order, &ping]), None, 1).await, [third]);
    assert_eq!(list(of(&[&order, &ping]), Some(PageToken(second)), MANY).await, [first]);
    let typed = RunFilter { workflow_type: Some("ping".to_owned()), ..of(&[&order, &ping]) };
    assert_eq!(list(typed, None, MANY).await, [], "the runs themselves are of another type");
    assert_eq!(ok(store.task_of(third).await), Some(ping));
    assert_eq!(ok(store.task_of(super::sample::new_run()).await), None);
    let unserved: Vec<&TaskRow> = census.unserved().iter().map(|WaitingGroup { task, .. }| task).collect();
    assert_eq!(unserved, [&order]);
}

/// Goal: what is allowed stays allowed, once however often it is said.
pub async fn builds_are_allowed_for_good(subject: &Subject) {
    let (store, namespace) = (&*subject.store, unique("ns"));
    let allowed = |queue: &str, build: &str| AllowedBuild {
        queue: QueueKey { namespace: namespace.clone(), task_queue: queue.to_owned() },
        build_id: build.to_owned(),
        continues: "0".to_owned(),
    };
    let all = [allowed("p", "1"), allowed("q", "1"), allowed("q", "2")];
    let nowhere = ok(store.administer(&Change::AllowBuild(all[0].clone()), None).await);
    assert_eq!(nowhere, Administered::NoNamespace);
    let made = Change::CreateNamespace { name: namespace.clone(), description: String::new() };
    assert_eq!(ok(store.administer(&made, None).await), Administered::Done);
    for allowed in all.iter().chain(&all).rev() {
        let change = Change::AllowBuild(allowed.clone());
        assert_eq!(ok(store.administer(&change, None).await), Administered::Done);
    }
    let mut found = ok(store.allowed_builds(MANY).await);
    found.retain(|a| a.queue.namespace == namespace);
    assert_eq!(found, all);
    let mut census = ok(store.census(HOUR, MANY).await);
    census.allowed.retain(|a| a.queue.namespace == namespace);
    assert_eq!(census.allowed, all);
}
