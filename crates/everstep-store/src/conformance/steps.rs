//! Queued steps: who has which attempt, what is due, and how fast a queue may go.

use std::collections::BTreeSet;

use everstep_core::{
    Duration, EventBody, OpId, Payload, QueueKey, QueuedOptions, RunStarted, Seq, SessionId, StepScheduled,
    StepTask, StepTimeout, Timestamp, Write,
};
use uuid::Uuid;

use super::sample::{MANY, Sample, commit, new_session, session_row, started, tables, unique};
use super::{Subject, ok};
use crate::{
    AttemptKey, Beat, BeatAnswer, ClaimId, ClaimKey, ClaimRow, Due, QueueLimits, QueueRecord, StepClaim,
    StepClaims, StepFilter, StepState, StepWant,
};

const HOUR: Duration = Duration::from_secs(3_600);
const PAST: Timestamp = Timestamp::from_micros(1_600_000_000_000_000);

/// A step that a worker may take; larger numbers have waited for longer.
fn task(sample: &Sample, step: u32) -> StepTask {
    StepTask {
        step: OpId(step),
        name: "transcode".to_owned(),
        attempt: 1,
        queue: sample.queue.clone(),
        priority: 3,
        scheduled: 2,
        visible_at: Timestamp::from_micros(PAST.as_micros() - i64::from(step)),
        start_by: None,
        close_by: None,
        start_to_close: None,
        heartbeat: None,
        canceled: false,
    }
}

fn set(task: &StepTask) -> Write {
    Write::StepTaskSet(Box::new(task.clone()))
}

/// A queued step of a run, as a write.
pub(super) fn step_set(sample: &Sample, step: u32) -> Write {
    set(&task(sample, step))
}

/// One whose next attempt is far away.
pub(super) fn step_set_later(sample: &Sample, step: u32) -> Write {
    set(&StepTask { visible_at: Timestamp::MAX, ..task(sample, step) })
}

fn scheduled(sample: &Sample) -> EventBody {
    let options = QueuedOptions { task_queue: sample.queue.task_queue.clone(), ..QueuedOptions::default() };
    let (step, name, input) = (OpId(1), "transcode".to_owned(), Payload::json("\"input\""));
    EventBody::StepScheduled(Box::new(StepScheduled { step, name, input, options }))
}

/// A run whose event 2 scheduled these steps.
async fn queued(subject: &Subject, tasks: impl FnOnce(&Sample) -> Vec<StepTask>) -> Sample {
    let sample = started(subject).await;
    let mut append = sample.bodies(2, vec![scheduled(&sample)]);
    append.writes = tasks(&sample).iter().map(set).collect();
    commit(&*subject.store, vec![append]).await;
    sample
}

async fn write(subject: &Subject, sample: &Sample, seq: Seq, writes: Vec<Write>) {
    commit(&*subject.store, vec![sample.with(seq, writes)]).await;
}

/// An open session.
async fn session(subject: &Subject) -> SessionId {
    let row = session_row(new_session(), HOUR);
    ok(subject.store.open_session(&row).await);
    row.session_id
}

fn want(sample: &Sample, session: SessionId) -> StepWant {
    let claim = ClaimId::from_uuid(Uuid::now_v7());
    StepWant { session, queue: sample.queue.clone(), types: vec!["transcode".to_owned()], claim }
}

async fn claim(subject: &Subject, want: &StepWant, limit: usize) -> Vec<StepClaim> {
    ok(subject.store.claim_steps(want, limit).await).claims
}

/// What all of them are given who claim at the same time, and whether one is to ask again.
async fn at_once(subject: &Subject, wants: &[StepWant], limit: usize) -> (Vec<StepClaim>, bool) {
    let claims = wants.iter().cloned().map(|want| {
        let store = subject.store.clone();
        tokio::spawn(async move { ok(store.claim_steps(&want, limit).await) })
    });
    let (mut all, mut again) = (Vec::new(), false);
    for claims in claims.collect::<Vec<_>>() {
        match claims.await {
            Ok(StepClaims { claims, again: later }) => {
                all.extend(claims);
                again |= later.is_some();
            }
            Err(e) => panic!("a claimer ended: {e}"),
        }
    }
    (all, again)
}

fn steps(claims: &[StepClaim]) -> Vec<u32> {
    claims.iter().map(|claim| claim.task.step.0).collect()
}

fn key(claim: &StepClaim) -> ClaimKey {
    ClaimKey { run: claim.run, step: claim.task.step, claim: claim.claim }
}

/// What is due of one run.
async fn due(subject: &Subject, sample: &Sample, claim: Duration) -> Vec<(u32, Due)> {
    let found = ok(subject.store.due_steps(MANY, claim).await);
    let own = found.due.into_iter().filter(|(key, _)| key.run == sample.run);
    own.map(|(key, due)| (key.step.0, due)).collect()
}

/// Goal: the queued steps of one append count in their order, and the tables of the run show them.
pub async fn queued_steps_of_a_run_apply_in_order(subject: &Subject) {
    let sample = queued(subject, |sample| vec![task(sample, 2), task(sample, 1)]).await;
    let all = async || tables(&*subject.store, sample.run).await.projection.steps;
    assert_eq!(all().await, [task(&sample, 1), task(&sample, 2)]);
    let later = StepTask {
        step: OpId(u32::MAX),
        attempt: u32::MAX,
        priority: 5,
        scheduled: 3,
        visible_at: StepTask::HELD,
        start_by: Some(PAST),
        close_by: Some(Timestamp::MAX),
        start_to_close: Some(Duration::from_secs(100 * 366 * 24 * 3_600)),
        heartbeat: Some(Duration::from_micros(1)),
        canceled: true,
        ..task(&sample, 9)
    };
    let writes = vec![Write::StepTaskDeleted(OpId(1)), set(&later), Write::StepTaskDeleted(OpId(7))];
    write(subject, &sample, 3, writes).await;
    assert_eq!(all().await, [task(&sample, 2), later.clone()]);
    let other = queued(subject, |sample| vec![task(sample, 1)]).await;
    let writes =
        vec![set(&later), Write::StepTasksCleared, set(&task(&sample, 5)), Write::StepTaskDeleted(OpId(2))];
    write(subject, &sample, 4, writes).await;
    assert_eq!(all().await, [task(&sample, 5)]);
    write(subject, &sample, 5, vec![Write::StepTasksCleared]).await;
    assert!(all().await.is_empty());
    assert_eq!(
        tables(&*subject.store, other.run).await.projection.steps.len(),
        1,
        "another run's steps stay"
    );
}

/// Goal: attempts are claimed once, by priority and then the oldest first, with all that a worker needs.
pub async fn attempts_are_claimed_once_in_order(subject: &Subject) {
    let sample = queued(subject, |sample| {
        let first = StepTask { priority: 1, ..task(sample, 1) };
        let last = StepTask { priority: 5, ..task(sample, 9) };
        vec![last, task(sample, 2), task(sample, 4), task(sample, 3), first]
    })
    .await;
    let want = want(&sample, session(subject).await);
    let two = ok(subject.store.claim_steps(&want, 2).await);
    assert_eq!((steps(&two.claims), two.again), (vec![1, 4], None));
    let [first, _] = &two.claims[..] else { return };
    assert_eq!((first.run, first.claim, &first.details), (sample.run, want.claim, &Payload::default()));
    assert_eq!(first.task, StepTask { priority: 1, ..task(&sample, 1) });
    assert_eq!((first.event.seq, &first.event.body), (2, &scheduled(&sample)));
    let RunStarted { workflow_id, workflow_type, input, .. } = &first.start;
    assert_eq!((workflow_id, workflow_type.as_str()), (&sample.workflow_id, "order"));
    assert!(input.is_none(), "the input of the run stays in the log");
    assert_eq!(steps(&claim(subject, &want, MANY).await), [3, 2, 9], "the rest");
    assert!(claim(subject, &want, MANY).await.is_empty(), "each once");
    assert!(claim(subject, &want, 0).await.is_empty());
}

/// Goal: a worker is given only what it can run, what is wanted and what is still in time.
pub async fn attempts_are_claimed_where_they_fit(subject: &Subject) {
    let now = subject.now().await;
    let sample = queued(subject, |sample| {
        let of = |step| task(sample, step);
        let elsewhere = QueueKey { task_queue: "elsewhere".to_owned(), ..sample.queue.clone() };
        vec![
            StepTask { name: "other".to_owned(), ..of(1) },
            StepTask { queue: elsewhere, ..of(2) },
            StepTask { visible_at: now.after(HOUR), ..of(3) },
            StepTask { visible_at: StepTask::HELD, ..of(4) },
            StepTask { canceled: true, ..of(5) },
            StepTask { start_by: Some(now), ..of(6) },
            StepTask { close_by: Some(now), ..of(7) },
            StepTask { start_by: Some(now.after(HOUR)), close_by: Some(Timestamp::MAX), ..of(8) },
        ]
    })
    .await;
    subject.pass(now).await;
    let open = session(subject).await;
    let closed = session(subject).await;
    ok(subject.store.close_session(closed).await);
    assert!(claim(subject, &want(&sample, closed), MANY).await.is_empty(), "its session is closed");
    assert!(claim(subject, &want(&sample, new_session()), MANY).await.is_empty(), "nobody knows its session");
    let none = StepWant { types: Vec::new(), ..want(&sample, open) };
    assert!(claim(subject, &none, MANY).await.is_empty(), "it runs nothing");
    assert_eq!(steps(&claim(subject, &want(&sample, open), MANY).await), [8]);
    let others = StepWant { types: vec!["x".to_owned(), "other".to_owned()], ..want(&sample, open) };
    assert_eq!(steps(&claim(subject, &others, MANY).await), [1]);
}

/// Goal: who has an attempt stays while its number and its instant do, and no longer.
pub async fn a_claim_lasts_as_long_as_its_attempt(subject: &Subject) {
    let sample = queued(subject, |sample| vec![task(sample, 1)]).await;
    let holder = session(subject).await;
    let claimed = claim(subject, &want(&sample, holder), 1).await;
    let has = async || ok(subject.store.claims_of(&[new_session(), holder]).await);
    let row = has().await;
    let [ClaimRow { session, key: held, attempt: 1, canceled: false, .. }] = row[..] else {
        panic!("{row:?}")
    };
    assert_eq!((session, held), (holder, key(&claimed[0])));
    let canceled = StepTask { canceled: true, ..task(&sample, 1) };
    write(subject, &sample, 3, vec![set(&canceled)]).await;
    assert!(has().await.iter().all(|row| row.canceled) && has().await.len() == 1, "a cancel leaves it");
    let next = StepTask { attempt: 2, ..task(&sample, 1) };
    write(subject, &sample, 4, vec![set(&next)]).await;
    assert!(has().await.is_empty(), "the attempt is over");
    assert!(!ok(subject.store.return_step(key(&claimed[0])).await));
    assert!(!ok(subject.store.defer_step(key(&claimed[0])).await));
    assert_eq!(claim(subject, &want(&sample, holder), 1).await.len(), 1);
    let held = StepTask { visible_at: StepTask::HELD, ..next };
    write(subject, &sample, 5, vec![set(&held)]).await;
    assert!(has().await.is_empty(), "an attempt in doubt is nobody's");
    assert!(ok(subject.store.claims_of(&[]).await).is_empty());
}

/// Goal: an attempt that was never begun is given to the next worker, under the same number.
pub async fn a_claim_is_returned(subject: &Subject) {
    let sample = queued(subject, |sample| vec![task(sample, 1)]).await;
    let holder = session(subject).await;
    let first = claim(subject, &want(&sample, holder), 1).await;
    assert!(ok(subject.store.return_step(key(&first[0])).await));
    assert!(!ok(subject.store.return_step(key(&first[0])).await), "once");
    assert_eq!(
        due(subject, &sample, HOUR).await,
        [(1, Due::Visible(sample.queue.clone()))],
        "and told at once"
    );
    let second = claim(subject, &want(&sample, holder), 1).await;
    assert_eq!((second[0].task.attempt, second.len()), (1, 1));
    assert!(!ok(subject.store.return_step(key(&first[0])).await), "not by the claim before");
    assert_eq!(ok(subject.store.claims_of(&[holder]).await).len(), 1);
}

/// Goal: a sign of life says whether the attempt is still wanted, and keeps what was said for the next one.
pub async fn signs_of_life_are_answered_and_kept(subject: &Subject) {
    let sample = queued(subject, |sample| vec![task(sample, 1), task(sample, 2)]).await;
    let holder = session(subject).await;
    let claims = claim(subject, &want(&sample, holder), 2).await;
    let [two, one] = [key(&claims[0]), key(&claims[1])];
    let beat =
        |key, details: Option<&str>| Beat { key, details: details.map(|d| Payload::json(d.to_owned())) };
    let beats = async |beats: Vec<Beat>| ok(subject.store.beat_steps(&beats).await);
    let stranger = ClaimKey { claim: ClaimId::from_uuid(Uuid::now_v7()), ..one };
    let answers =
        beats(vec![beat(stranger, Some("0")), beat(one, Some("1")), beat(one, Some("2")), beat(one, None)]);
    let going = BeatAnswer::Going;
    assert_eq!(answers.await, [BeatAnswer::Gone, going, going, going]);
    assert!(beats(Vec::new()).await.is_empty());
    write(subject, &sample, 3, vec![set(&StepTask { canceled: true, ..task(&sample, 2) })]).await;
    assert_eq!(beats(vec![beat(two, None), beat(one, None)]).await, [BeatAnswer::Canceled, going]);
    let attempt = |attempt| AttemptKey { run: sample.run, step: OpId(1), attempt };
    let by_token = async |n, said| ok(subject.store.beat_by_token(attempt(n), said).await);
    assert_eq!(by_token(2, None).await, BeatAnswer::Gone);
    let three = Payload::json("3");
    assert_eq!(by_token(1, Some(&three)).await, going);
    assert_eq!(by_token(1, None).await, going);
    write(subject, &sample, 4, vec![set(&StepTask { attempt: 2, ..task(&sample, 1) })]).await;
    assert_eq!(beats(vec![beat(one, Some("late"))]).await, [BeatAnswer::Gone]);
    assert_eq!(by_token(2, Some(&Payload::json("early"))).await, BeatAnswer::Gone, "nobody has it yet");
    let next = claim(subject, &want(&sample, holder), 1).await;
    assert_eq!(next[0].details, Payload::json("3"), "the next attempt goes on from there");
    write(subject, &sample, 5, vec![Write::StepTaskDeleted(OpId(1))]).await;
    assert_eq!(beats(vec![beat(key(&next[0]), None)]).await, [BeatAnswer::Gone]);
}

/// Goal: attempts of a closed session are lost, but for those that are completed by their token.
pub async fn attempts_of_closed_sessions_are_lost(subject: &Subject) {
    let sample = queued(subject, |sample| (1..=4).map(|step| task(sample, step)).collect()).await;
    let (gone, lives) = (session(subject).await, session(subject).await);
    let claims = claim(subject, &want(&sample, gone), 3).await;
    assert_eq!(claim(subject, &want(&sample, lives), 1).await.len(), 1);
    assert!(ok(subject.store.defer_step(key(&claims[0])).await));
    let lost = async |limit| {
        let all = ok(subject.store.lost_steps(limit).await);
        all.into_iter()
            .filter(|key| key.run == sample.run)
            .map(|key| (key.step.0, key.attempt))
            .collect::<Vec<_>>()
    };
    assert!(lost(MANY).await.is_empty());
    ok(subject.store.close_session(gone).await);
    let [_, b, a] = &steps(&claims)[..] else { panic!("{claims:?}") };
    assert_eq!(lost(MANY).await, [(*a, 1), (*b, 1)]);
    assert!(ok(subject.store.lost_steps(1).await).len() == 1);
    let next = StepTask { attempt: 2, ..task(&sample, *a) };
    write(subject, &sample, 3, vec![set(&next), Write::StepTaskDeleted(OpId(*b))]).await;
    assert!(lost(MANY).await.is_empty(), "nobody has them any more");
    let deferred = ok(subject.store.beat_steps(&[Beat { key: key(&claims[0]), details: None }]).await);
    assert_eq!(deferred, [BeatAnswer::Going], "the deferred one goes on");
}

/// Goal: each time of a queued step runs out at its instant, told to one caller at a time.
pub async fn times_of_queued_steps_run_out(subject: &Subject) {
    let (now, short) = (subject.now().await, Duration::from_millis(5));
    let soon = now.after(short);
    let sample = queued(subject, |sample| {
        let of = |step| StepTask { visible_at: now.after(HOUR), ..task(sample, step) };
        vec![
            StepTask { close_by: Some(soon), start_by: Some(soon), ..of(1) },
            StepTask { start_by: Some(soon), ..of(2) },
            StepTask { canceled: true, ..of(3) },
            StepTask { canceled: true, visible_at: StepTask::HELD, close_by: Some(now.after(HOUR)), ..of(4) },
            StepTask { visible_at: StepTask::HELD, close_by: Some(soon), ..of(5) },
            StepTask { close_by: Some(Timestamp::MAX), ..of(6) },
        ]
    })
    .await;
    let timeout = Due::Timeout;
    subject.pass(soon).await;
    let mut first = due(subject, &sample, short).await;
    first.sort();
    let expected = [
        (1, timeout(StepTimeout::ScheduleToClose)),
        (2, timeout(StepTimeout::ScheduleToStart)),
        (3, timeout(StepTimeout::Canceled)),
        (5, timeout(StepTimeout::ScheduleToClose)),
    ];
    assert_eq!(first, expected);
    let told = subject.now().await;
    let again = due(subject, &sample, HOUR).await;
    subject.pass(told.after(short)).await;
    let mut all = due(subject, &sample, HOUR).await;
    all.extend(again);
    all.sort();
    assert_eq!(all, expected, "once while the claim lasts, and again when nothing came of it");
    assert!(due(subject, &sample, HOUR).await.is_empty());
}

/// Goal: an attempt may run, and be silent, for so long from when it was claimed or last heard of.
pub async fn times_of_running_attempts_run_out(subject: &Subject) {
    let short = Duration::from_millis(40);
    let sample = queued(subject, |sample| {
        vec![
            StepTask { start_to_close: Some(short), ..task(sample, 1) },
            StepTask { heartbeat: Some(short), ..task(sample, 2) },
            StepTask { heartbeat: Some(HOUR), start_to_close: Some(HOUR), ..task(sample, 3) },
            StepTask { heartbeat: Some(short), ..task(sample, 4) },
        ]
    })
    .await;
    let claims = claim(subject, &want(&sample, session(subject).await), MANY).await;
    assert_eq!(steps(&claims), [4, 3, 2, 1]);
    subject.pass(subject.now().await.after(short)).await;
    let beat = Beat { key: key(&claims[0]), details: None };
    assert_eq!(ok(subject.store.beat_steps(&[beat]).await), [BeatAnswer::Going]);
    let beaten = subject.now().await;
    let mut found = due(subject, &sample, HOUR).await;
    let slow = subject.now().await.since(beaten) >= short;
    found.retain(|(step, _)| !slow || *step != 4);
    found.sort();
    let (run, silent) = (Due::Timeout(StepTimeout::StartToClose), Due::Timeout(StepTimeout::Heartbeat));
    assert_eq!(found, [(1, run), (2, silent.clone())], "but not the one that was heard of");
    if !slow {
        subject.pass(subject.now().await.after(short)).await;
        assert_eq!(due(subject, &sample, HOUR).await, [(4, silent)], "until it falls silent, too");
    }
}

/// Goal: an attempt that nobody takes is spoken of at its instant and now and then afterwards.
pub async fn attempts_that_wait_are_told(subject: &Subject) {
    let now = subject.now().await;
    let soon = now.after(Duration::from_millis(20));
    let sample = queued(subject, |sample| {
        vec![
            StepTask { visible_at: soon, ..task(sample, 1) },
            StepTask { visible_at: now.after(HOUR), ..task(sample, 2) },
        ]
    })
    .await;
    let early = ok(subject.store.due_steps(MANY, HOUR).await);
    assert!(early.next.is_some_and(|next| next <= now.after(HOUR)), "the next one is named");
    subject.pass(soon).await;
    let waits = [(1, Due::Visible(sample.queue.clone()))];
    let told = early.due.iter().any(|(key, _)| key.run == sample.run);
    let first = due(subject, &sample, HOUR).await;
    assert!(told || first == waits, "{first:?}");
    let second = subject.now().await;
    let soon_again = due(subject, &sample, HOUR).await;
    assert!(soon_again.is_empty() || subject.now().await.since(second) >= Duration::from_secs(1));
    subject.pass(second.after(Duration::from_millis(1_100))).await;
    assert!(
        !soon_again.is_empty() || due(subject, &sample, HOUR).await == waits,
        "told again after a second"
    );
}

/// Goal: no more attempts of a queue run at one time than may, whoever claims.
pub async fn running_attempts_of_a_queue_are_limited(subject: &Subject) {
    let sample = queued(subject, |sample| (1..=8).map(|step| task(sample, step)).collect()).await;
    let limits = |n| QueueLimits { max_running: Some(n), ..QueueLimits::default() };
    let (a, b) = (session(subject).await, session(subject).await);
    ok(subject.store.set_queue_limits(&sample.queue, limits(2)).await);
    let [one, two] = [want(&sample, a), want(&sample, b)];
    let (claims, again) = at_once(subject, &[one, two], 8).await;
    assert_eq!((claims.len(), again), (2, true), "of both together");
    let none = ok(subject.store.claim_steps(&want(&sample, a), 8).await);
    assert!(none.claims.is_empty() && none.again.is_some_and(|again| again > PAST), "{none:?}");
    assert!(ok(subject.store.defer_step(key(&claims[0])).await));
    assert!(claim(subject, &want(&sample, a), 8).await.is_empty(), "a deferred one counts");
    write(subject, &sample, 3, vec![Write::StepTaskDeleted(claims[0].task.step)]).await;
    let next = ok(subject.store.claim_steps(&want(&sample, a), 1).await);
    assert_eq!((next.claims.len(), next.again), (1, None), "as many as were asked for");
    ok(subject.store.set_queue_limits(&sample.queue, limits(4)).await);
    assert_eq!(claim(subject, &want(&sample, a), 8).await.len(), 2, "more from now on");
    ok(subject.store.set_queue_limits(&sample.queue, QueueLimits::default()).await);
    assert_eq!(claim(subject, &want(&sample, a), 8).await.len(), 3, "no limit");
}

/// Goal: attempts of a queue begin no faster than they may, but for a burst.
pub async fn attempts_of_a_queue_begin_at_a_rate(subject: &Subject) {
    let sample = queued(subject, |sample| (1..=20).map(|step| task(sample, step)).collect()).await;
    let a = session(subject).await;
    let (rate, burst) = (20.0, 3);
    let limits = QueueLimits { max_per_second: Some(rate), burst, ..QueueLimits::default() };
    let begin = subject.now().await;
    ok(subject.store.set_queue_limits(&sample.queue, limits).await);
    let first = ok(subject.store.claim_steps(&want(&sample, a), 20).await);
    let passed = subject.now().await.since(begin).as_secs_f64();
    assert!(
        (3..=3 + (passed * rate).floor() as usize).contains(&first.claims.len()),
        "{}",
        first.claims.len()
    );
    let Some(again) = first.again else { panic!("it says when to ask again") };
    assert!(
        again <= subject.now().await.after(Duration::from_millis(50)),
        "the next one may begin after 50 ms"
    );
    subject.pass(again).await;
    let next = claim(subject, &want(&sample, a), 20).await.len();
    let passed = subject.now().await.since(begin).as_secs_f64();
    let total = first.claims.len() + next;
    assert!(next >= 1 && total as f64 <= f64::from(burst) + passed * rate, "{total} in {passed} s");
    let slow = QueueLimits { max_per_second: Some(0.000_1), burst: 1, ..QueueLimits::default() };
    ok(subject.store.set_queue_limits(&sample.queue, slow).await);
    assert!(claim(subject, &want(&sample, a), 20).await.len() <= 1, "what was saved up is cut to the burst");
    let none = ok(subject.store.claim_steps(&want(&sample, a), 20).await);
    let soon = begin.after(Duration::from_secs(1));
    assert!(none.claims.is_empty() && none.again.is_some_and(|at| at > soon), "{none:?}");
}

/// Goal: a queue shows what waits and runs in it, and the queues of a namespace are listed.
pub async fn queues_are_shown_and_listed(subject: &Subject) {
    let store = &*subject.store;
    let sample = queued(subject, |sample| {
        let later = |step, visible_at| StepTask { visible_at, ..task(sample, step) };
        let mut all = vec![task(sample, 1), task(sample, 2), task(sample, 3)];
        all.extend([
            later(4, Timestamp::MAX),
            later(5, Timestamp::from_micros(Timestamp::MAX.as_micros() - 9)),
        ]);
        all
    })
    .await;
    write(subject, &sample, 3, vec![Write::TaskSet(everstep_core::TaskRow::of_queue(sample.queue.clone()))])
        .await;
    assert_eq!(claim(subject, &want(&sample, session(subject).await), 1).await.len(), 1);
    let limits = QueueLimits { max_running: Some(7), max_per_second: Some(2.5), burst: 4 };
    ok(store.set_queue_limits(&sample.queue, limits).await);
    let record = QueueRecord {
        task_queue: sample.queue.task_queue.clone(),
        limits,
        waiting: 2,
        running: 1,
        later: 2,
        oldest_waiting: Some(task(&sample, 2).visible_at),
        runs_waiting: 1,
    };
    assert_eq!(ok(store.queue(&sample.queue).await), record);
    let other = QueueKey { task_queue: "zeta".to_owned(), ..sample.queue.clone() };
    assert_eq!(ok(store.queue(&other).await).task_queue, "zeta");
    ok(store.set_queue_limits(&other, limits).await);
    let names = async |after: &str, limit| {
        let all = ok(store.queues(&sample.queue.namespace, after, limit).await);
        all.into_iter().map(|record| record.task_queue).collect::<Vec<_>>()
    };
    assert_eq!(names("", MANY).await, ["main", "zeta"]);
    assert_eq!(names("", 1).await, ["main"]);
    assert_eq!(names("main", MANY).await, ["zeta"]);
    assert_eq!(ok(store.queues(&sample.queue.namespace, "", 1).await), [record]);
    assert!(ok(store.queues(&unique("ns"), "", MANY).await).is_empty());
}

/// Goal: queued steps are listed with who has them, by state, run and queue, page by page.
pub async fn queued_steps_are_listed(subject: &Subject) {
    let store = &*subject.store;
    let sample = queued(subject, |sample| {
        let held = StepTask { visible_at: StepTask::HELD, ..task(sample, 4) };
        vec![
            task(sample, 1),
            task(sample, 2),
            StepTask {
                visible_at: Timestamp::from_micros(Timestamp::MAX.as_micros() - 1),
                ..task(sample, 3)
            },
            held,
        ]
    })
    .await;
    let other = Sample::of(subject, &sample.queue.namespace, &unique("order")).await;
    commit(store, vec![other.start(None)]).await;
    let elsewhere = QueueKey { task_queue: "elsewhere".to_owned(), ..sample.queue.clone() };
    write(subject, &other, 2, vec![set(&StepTask { queue: elsewhere, ..task(&other, 1) })]).await;
    let holder = session(subject).await;
    let claimed = claim(subject, &want(&sample, holder), 1).await;
    assert_eq!(steps(&claimed), [2]);
    ok(store.beat_steps(&[Beat { key: key(&claimed[0]), details: None }]).await);
    let all = StepFilter { namespace: sample.queue.namespace.clone(), ..StepFilter::default() };
    let list = async |filter: &StepFilter, after, limit| ok(store.list_steps(filter, after, limit).await);
    let of =
        |records: &[crate::StepRecord]| records.iter().map(|r| (r.run, r.task.step.0)).collect::<Vec<_>>();
    let (x, y) = (sample.run, other.run);
    assert_eq!(
        of(&list(&all, None, MANY).await),
        [(x, 1), (x, 2), (x, 3), (y, 1)],
        "but for the one in doubt"
    );
    assert_eq!(of(&list(&all, Some((x, OpId(1))), 2).await), [(x, 2), (x, 3)]);
    let running = list(&StepFilter { state: Some(StepState::Running), ..all.clone() }, None, MANY).await;
    let [record] = &running[..] else { panic!("{running:?}") };
    assert_eq!((record.task.step.0, record.session, record.state), (2, Some(holder), StepState::Running));
    assert_eq!((&record.workflow_id, record.beat_at >= record.claimed_at), (&sample.workflow_id, true));
    let waiting = StepFilter { state: Some(StepState::Queued), run: Some(x), ..all.clone() };
    assert_eq!(of(&list(&waiting, None, MANY).await), [(x, 1), (x, 3)]);
    let queue = StepFilter { task_queue: Some("elsewhere".to_owned()), ..all.clone() };
    assert_eq!(of(&list(&queue, None, MANY).await), [(y, 1)]);
    assert!(list(&StepFilter { namespace: unique("ns"), ..all }, None, MANY).await.is_empty());
}

/// Goal: many who claim at once are given different attempts, and all of them.
pub async fn concurrent_claims_share_the_attempts(subject: &Subject) {
    let sample = queued(subject, |sample| (1..=60).map(|step| task(sample, step)).collect()).await;
    let mut wants = Vec::new();
    for _ in 0..6 {
        wants.push(want(&sample, session(subject).await));
    }
    let mut seen = BTreeSet::new();
    let mut total = 0;
    loop {
        let (claims, _) = at_once(subject, &wants, 5).await;
        if claims.is_empty() {
            break;
        }
        total += claims.len();
        seen.extend(claims.iter().map(|claim| claim.task.step.0));
    }
    assert_eq!((total, seen.len()), (60, 60));
}

/// Goal: what tokens are signed with is there, and stays.
pub async fn a_deployment_has_a_secret(subject: &Subject) {
    let secret = ok(subject.store.deployment_secret().await);
    assert_eq!(secret, ok(subject.store.deployment_secret().await));
    assert_ne!(secret, [0; 32]);
}

/// Goal: an input that does not stand beside its event comes all the same, and is checked.
pub async fn a_large_input_comes_with_its_claim(subject: &Subject) {
    let sample = started(subject).await;
    let EventBody::StepScheduled(mut step) = scheduled(&sample) else { return };
    step.input = Payload { encoding: "raw".to_owned(), data: vec![7; 1024 * 1024].into() };
    let body = EventBody::StepScheduled(step);
    let mut append = sample.bodies(2, vec![body.clone()]);
    append.writes = vec![set(&task(&sample, 1))];
    commit(&*subject.store, vec![append]).await;
    let claims = claim(subject, &want(&sample, session(subject).await), 1).await;
    assert!(claims.len() == 1 && claims[0].event.body == body);
}
