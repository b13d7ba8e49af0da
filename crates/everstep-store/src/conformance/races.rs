//! Many callers at once.

use std::collections::BTreeMap;

use everstep_core::{CommandId, RunStatus, Seq};

use super::sample::{Sample, history, started};
use super::{Subject, ok};
use crate::{Append, Verdict};

/// Goal: of many appends that race for one run exactly one wins each seq, and the winner knows it.
pub async fn concurrent_appends_have_one_winner_per_seq(subject: &Subject) {
    const LAST: Seq = 40;
    let sample = started(subject).await;
    let mut racers = Vec::new();
    for _ in 0..8 {
        let (store, sample) = (subject.store.clone(), sample.clone());
        racers.push(tokio::spawn(async move {
            let mut won: Vec<(Seq, CommandId)> = Vec::new();
            loop {
                let tail = ok(store.read_events(sample.run, 0, 1_000).await).len() as Seq;
                if tail >= LAST {
                    return won;
                }
                let run = sample.steps(tail + 1, 1);
                let mine = (tail + 1, run.events[0].command_id);
                match store.append(vec![Append::of(run)]).await.verdicts.swap_remove(0) {
                    Verdict::Committed => won.push(mine),
                    Verdict::Conflict => {}
                    Verdict::Failed(e) => assert!(e.is_retryable(), "{e}"),
                }
            }
        }));
    }
    let mut winners = BTreeMap::new();
    for racer in racers {
        match racer.await {
            Ok(won) => won.into_iter().for_each(|(seq, command)| {
                assert!(winners.insert(seq, command).is_none(), "two winners of seq {seq}");
            }),
            Err(e) => panic!("a racer ended: {e}"),
        }
    }
    let stored: BTreeMap<_, _> =
        history(&*subject.store, sample.run).await.into_iter().map(|e| (e.seq, e.command_id)).collect();
    assert_eq!(stored.keys().copied().collect::<Vec<_>>(), (1..=LAST).collect::<Vec<_>>());
    assert!(winners == stored.into_iter().skip(1).collect(), "who won and what is stored differ");
}

/// Goal: of many first starts of one workflow id exactly one wins.
pub async fn concurrent_starts_have_one_winner(subject: &Subject) {
    let sample = Sample::new(subject).await;
    let mut racers = Vec::new();
    for _ in 0..8 {
        let (store, rival) = (subject.store.clone(), sample.next());
        racers.push(tokio::spawn(async move {
            loop {
                match store.append(vec![Append::of(rival.start(None))]).await.verdicts.swap_remove(0) {
                    Verdict::Committed => return Some(rival.run),
                    Verdict::Conflict => return None,
                    Verdict::Failed(e) => assert!(e.is_retryable(), "{e}"),
                }
            }
        }));
    }
    let mut winners = Vec::new();
    for racer in racers {
        match racer.await {
            Ok(won) => winners.extend(won),
            Err(e) => panic!("a racer ended: {e}"),
        }
    }
    assert_eq!(winners.len(), 1, "winners: {winners:?}");
    let found = subject.store.find_start(&sample.queue.namespace, &sample.workflow_id, "none").await;
    assert_eq!(ok(found).current, Some((winners[0], RunStatus::Running)));
}
