//! What the sweep finds: timers, tasks, wakes, blocked runs.

use everstep_core::{Duration, OpId, QueueKey, RunRow, RunStatus, TaskRow, TimerKey, Timestamp, Write};

use super::sample::{MANY, Sample, commit, new_session, session_row, started, tables, timer_set, unique};
use super::{Subject, ok};
use crate::RunWant;

const HOUR: Duration = Duration::from_secs(3_600);

/// The ids of the run's own timers among those claimed now, in order.
async fn claim(subject: &Subject, sample: &Sample, claim: Duration) -> Vec<u32> {
    let claimed = ok(subject.store.claim_timers(MANY, claim).await);
    assert_eq!(claimed.due.len(), claimed.late.len(), "a lateness each");
    claimed.due.into_iter().filter(|(run, _)| *run == sample.run).map(|(_, key)| key.id).collect()
}

/// Goal: due timers are claimed in order of their instants, once until the claim ends; none comes early.
pub async fn timers_are_claimed_once_and_again_later(subject: &Subject) {
    let sample = started(subject).await;
    let now = subject.now().await;
    let before = |micros| Timestamp::from_micros(now.as_micros() - micros);
    let writes = vec![
        timer_set(1, before(10)),
        timer_set(2, before(20)),
        timer_set(3, now.after(HOUR)),
        timer_set(4, now),
    ];
    commit(&*subject.store, vec![sample.with(2, writes)]).await;
    assert_eq!(claim(subject, &sample, Duration::from_millis(5)).await, [2, 1, 4]);
    let claimed_at = subject.now().await;
    subject.pass(claimed_at.after(Duration::from_millis(5))).await;
    assert_eq!(claim(subject, &sample, HOUR).await, [2, 1, 4], "a claim ends");
    assert!(claim(subject, &sample, HOUR).await.is_empty(), "a claim holds");
    assert_eq!(
        tables(&*subject.store, sample.run).await.projection.timers.len(),
        4,
        "a claim deletes nothing"
    );
    let claimed = ok(subject.store.claim_timers(0, HOUR).await);
    assert!(claimed.due.is_empty() && claimed.now >= now);
}

/// Goal: a claim is renewed while its timer stands as it was claimed, and not behind that.
pub async fn claims_of_timers_are_renewed(subject: &Subject) {
    let (store, sample) = (&*subject.store, started(subject).await);
    let past = Timestamp::from_micros(1);
    let timers = (1..=4).map(|id| timer_set(id, past)).collect();
    commit(store, vec![sample.with(2, timers)]).await;
    let short = Duration::from_millis(5);
    assert_eq!(claim(subject, &sample, short).await, [1, 2, 3, 4]);
    let mut all = tables(store, sample.run).await.projection.timers;
    all.sort_unstable_by_key(|timer| timer.key.id);
    let keys: Vec<_> = all.iter().map(|timer| (sample.run, timer.key)).collect();
    // The second is set again, and may fire at once; the third is gone.
    let writes = vec![timer_set(2, past), Write::TimerDeleted(keys[2].1)];
    commit(store, vec![sample.with(3, writes)]).await;
    let mut renewed = ok(store.renew_timers(&keys, HOUR).await);
    renewed.sort_unstable();
    assert_eq!(renewed, [keys[0], keys[3]]);
    subject.pass(subject.now().await.after(short)).await;
    assert_eq!(claim(subject, &sample, HOUR).await, [2], "the others are claimed");
    assert_eq!(ok(store.renew_timers(&keys[..1], short).await), keys[..1]);
    subject.pass(subject.now().await.after(short)).await;
    assert_eq!(claim(subject, &sample, HOUR).await, [1], "a renewed claim ends, too");
    assert!(ok(store.renew_timers(&[], HOUR).await).is_empty());
}

/// Goal: a claim tells how late it is, by the database's clock.
pub async fn late_timers_are_told(subject: &Subject) {
    let (store, sample) = (&*subject.store, started(subject).await);
    let now = subject.now().await;
    let due = Timestamp::from_micros(now.as_micros() - 7_000_000);
    commit(store, vec![sample.with(2, vec![timer_set(1, now), timer_set(2, due)])]).await;
    let claimed = ok(store.claim_timers(MANY, HOUR).await);
    let own = claimed.due.iter().zip(&claimed.late).filter(|((run, _), _)| *run == sample.run);
    let late: Vec<Duration> = own.map(|(_, late)| *late).collect();
    assert_eq!(late, [claimed.now.since(due), claimed.now.since(now)]);
}

/// Goal: setting a timer anew ends its claim; a deleted or cleared one never comes.
pub async fn timers_are_set_again_deleted_and_cleared(subject: &Subject) {
    let (store, sample) = (&*subject.store, started(subject).await);
    let past = Timestamp::from_micros(1);
    let timers = |ids: &[u32]| ids.iter().map(|id| timer_set(*id, past)).collect::<Vec<_>>();
    commit(store, vec![sample.with(2, timers(&[1, 2]))]).await;
    assert_eq!(claim(subject, &sample, HOUR).await, [1, 2]);
    commit(store, vec![sample.with(3, timers(&[2]))]).await;
    assert_eq!(claim(subject, &sample, HOUR).await, [2]);
    let mut writes = timers(&[1, 2, 3]);
    writes.push(Write::TimerDeleted(TimerKey::timer(OpId(2))));
    writes.push(Write::TimerDeleted(TimerKey::timer(OpId(9))));
    writes.push(Write::TimerDeleted(TimerKey::retry(OpId(3))));
    commit(store, vec![sample.with(4, writes)]).await;
    assert_eq!(claim(subject, &sample, HOUR).await, [1, 3]);
    let other = started(subject).await;
    commit(store, vec![other.with(2, timers(&[1]))]).await;
    let mut writes = timers(&[1, 3]);
    writes.push(Write::TimersCleared);
    commit(store, vec![sample.with(5, writes)]).await;
    assert!(tables(store, sample.run).await.projection.timers.is_empty());
    assert_eq!(claim(subject, &other, HOUR).await, [1], "another run's timers stay");
}

/// Goal: the claim says when to look again: at the first timer that nobody has claimed.
pub async fn the_next_timer_is_named(subject: &Subject) {
    let (store, sample) = (&*subject.store, started(subject).await);
    let now = subject.now().await;
    let soon = now.after(Duration::from_secs(60));
    commit(store, vec![sample.with(2, vec![timer_set(1, soon), timer_set(2, Timestamp::MAX)])]).await;
    assert!(claim(subject, &sample, HOUR).await.is_empty());
    let next = ok(store.claim_timers(MANY, HOUR).await).next;
    assert!(next.is_some_and(|next| next <= soon), "next is {next:?}, at most {soon}");
}

/// Goal: a task is left alone for a second, then claimed after pauses of 2, 4, 8 … seconds.
pub async fn tasks_are_claimed_with_growing_pauses(subject: &Subject) {
    let (store, sample) = (&*subject.store, started(subject).await);
    let queues = [RunWant::of_queue(sample.queue.clone())];
    let claimed = async || ok(store.claim_tasks(Some(&queues), MANY).await).len();
    let secs = Duration::from_secs;
    let set = subject.now().await;
    commit(store, vec![sample.with(2, vec![Write::TaskSet(TaskRow::of_queue(sample.queue.clone()))])]).await;
    let early = claimed().await;
    let in_grace = subject.now().await.since(set) < secs(1);
    assert!(early == 0 || !in_grace, "claimed within the grace of a second");
    if early == 0 {
        subject.pass(subject.now().await.after(secs(1))).await;
        assert_eq!(claimed().await, 1, "claimed once the grace is over");
    }
    let first = subject.now().await;
    let again = claimed().await;
    assert!(again == 0 || subject.now().await.since(first) >= secs(2), "claimed again within 2 seconds");
    subject.pass(first.after(secs(2))).await;
    assert_eq!(again + claimed().await, 1, "claimed again after 2 seconds");
    let second = subject.now().await;
    let again = claimed().await;
    assert!(again == 0 || subject.now().await.since(second) >= secs(4), "claimed again within 4 seconds");
    commit(store, vec![sample.with(3, vec![Write::TaskDeleted])]).await;
    assert_eq!(tables(store, sample.run).await.projection.task, None);
}

/// Goal: tasks of the queues asked for, or of all; at most the limit.
pub async fn tasks_are_claimed_by_queue(subject: &Subject) {
    let store = &*subject.store;
    let namespace = unique("ns");
    let queue = |name: &str| QueueKey { namespace: namespace.clone(), task_queue: name.to_owned() };
    let mut samples = Vec::new();
    for name in ["a", "b", "b", "c"] {
        let sample = Sample { queue: queue(name), ..Sample::of(subject, &namespace, &unique("order")).await };
        commit(store, vec![sample.start(None)]).await;
        commit(store, vec![sample.with(2, vec![Write::TaskSet(TaskRow::of_queue(sample.queue.clone()))])])
            .await;
        samples.push(sample);
    }
    subject.pass(subject.now().await.after(Duration::from_secs(1))).await;
    let elsewhere = QueueKey { namespace: unique("ns"), task_queue: "b".to_owned() };
    assert!(ok(store.claim_tasks(Some(&[RunWant::of_queue(elsewhere)]), MANY).await).is_empty());
    assert!(ok(store.claim_tasks(Some(&[]), MANY).await).is_empty());
    let first = ok(store.claim_tasks(Some(&[RunWant::of_queue(queue("b"))]), 1).await);
    assert_eq!(first.len(), 1);
    let mut both = ok(store.claim_tasks(Some(&["a", "b"].map(|q| RunWant::of_queue(queue(q)))), MANY).await);
    both.extend(first);
    both.sort();
    let expected =
        samples[..3].iter().map(|s| (s.run, TaskRow::of_queue(s.queue.clone()))).collect::<Vec<_>>();
    assert_eq!(both, expected, "each task of both queues once");
    let all = ok(store.claim_tasks(None, MANY).await);
    let own: Vec<_> = all.into_iter().filter(|(_, task)| task.queue.namespace == namespace).collect();
    assert_eq!(own, [(samples[3].run, TaskRow::of_queue(queue("c")))], "of every queue");
}

/// Goal: a wake that the owner's node did not see to in time is found by that node alone.
pub async fn wakes_are_found_when_stale_and_deleted(subject: &Subject) {
    let (store, sample) = (&*subject.store, started(subject).await);
    let session = session_row(new_session(), HOUR);
    ok(store.open_session(&session).await);
    let owned = Write::Run(Box::new(sample.owned(2, session.session_id)));
    commit(store, vec![sample.with(2, vec![owned, Write::WakeSet { seq: 2 }])]).await;
    commit(store, vec![sample.with(3, vec![Write::WakeSet { seq: 3 }])]).await;
    subject.pass(subject.now().await).await;
    let node = session.node_id;
    let stale = async |node, age| ok(store.stale_wakes(node, age, MANY).await);
    assert_eq!(stale(node, Duration::ZERO).await, [(sample.run, 3)], "one answer per run, its last wake");
    assert!(stale(node, HOUR).await.is_empty(), "not stale yet");
    assert!(stale(session_row(new_session(), HOUR).node_id, Duration::ZERO).await.is_empty(), "another node");
    ok(store.delete_wakes(&[(sample.run, 2)]).await);
    assert_eq!(tables(store, sample.run).await.wakes, [3]);
    ok(store.delete_wakes(&[]).await);
    ok(store.delete_wakes(&[(sample.run, 1), (sample.run, 9)]).await);
    assert!(tables(store, sample.run).await.wakes.is_empty());
    assert!(stale(node, Duration::ZERO).await.is_empty());
    commit(store, vec![sample.with(4, vec![Write::WakeSet { seq: 4 }])]).await;
    ok(store.close_session(session.session_id).await);
    subject.pass(subject.now().await).await;
    assert!(stale(node, Duration::ZERO).await.is_empty(), "a closed session has no wakes to see to");
}

/// Goal: blocked runs of a queue are found unless the build that is asked for blocked them.
pub async fn blocked_runs_are_found_by_queue_and_build(subject: &Subject) {
    let store = &*subject.store;
    let namespace = unique("ns");
    let mut runs = Vec::new();
    for (build, status) in [
        ("b1", RunStatus::Blocked),
        ("b2", RunStatus::Blocked),
        ("b1", RunStatus::Running),
        ("b1", RunStatus::Blocked),
    ] {
        let sample = Sample::of(subject, &namespace, &unique("order")).await;
        commit(store, vec![sample.start(None)]).await;
        let row = RunRow { status, build_id: build.to_owned(), blocked: "why".to_owned(), ..sample.row(2) };
        commit(store, vec![sample.with(2, vec![Write::Run(Box::new(row))])]).await;
        runs.push(sample);
    }
    let queue = runs[0].queue.clone();
    let find = async |queue: &QueueKey, build, after, limit| {
        ok(store.blocked_runs(queue, build, after, limit).await)
    };
    assert_eq!(find(&queue, "b2", None, MANY).await, [runs[0].run, runs[3].run]);
    assert_eq!(find(&queue, "b1", None, MANY).await, [runs[1].run]);
    assert_eq!(find(&queue, "b3", None, 2).await, [runs[0].run, runs[1].run]);
    assert_eq!(find(&queue, "b3", Some(runs[1].run), MANY).await, [runs[3].run]);
    let other = QueueKey { task_queue: "other".to_owned(), ..queue };
    assert!(find(&other, "b3", None, MANY).await.is_empty());
}
