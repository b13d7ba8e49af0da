//! What a world is held against, while it plays and at its end.

use std::collections::BTreeSet;

use everstep_core::{BlockKind, EventBody, RunId, Seq};
use everstep_store::WakeRows;
use everstep_tests::program::{IN_DOUBT, STEP_TIMEOUT};

use crate::check::{self, Done, Facts, Watched};
use crate::worker;
use crate::world::World;

macro_rules! totals {
    ($($(#[$doc:meta])* $name:ident = $shown:expr;)+) => {
        /// What a seed, or many, went through.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Totals { $($(#[$doc])* pub(crate) $name: u64,)+ }

        impl Totals {
            pub(crate) fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }

            /// What has to have happened somewhere, or the simulation proves nothing.
            pub(crate) fn shown(&self) -> Vec<(&'static str, u64)> {
                vec![$(($shown, self.$name),)+]
            }
        }
    };
}

totals! {
    events = "an event";
    runs = "a run";
    replies_lost = "a lost commit reply";
    requests_lost = "a lost append";
    commits_late = "a late commit";
    unavailable = "a store that does not answer";
    nodes_died = "a dead node";
    workers_died = "a dead worker";
    workers_stalled = "a stalled worker";
    clients_died = "a dead client";
    links_cut = "a cut stream";
    links_slow = "a slow stream";
    heartbeats_lost = "a lost heartbeat";
    hints_lost = "a lost hint";
    clocks_set = "a database clock that was set";
    deploys = "a deploy for a blocked run";
    conflicts = "a lost race";
    fenced = "a fenced commit";
    unknown_settled = "an unknown outcome settled";
    re_executed = "a re-executed step";
    parked = "a parked run";
    blocked_nondeterminism = "a run blocked for nondeterminism";
    blocked_poison = "a run blocked as poison";
    doubts = "a step in doubt";
    resolved = "a step that a person resolved";
    given_up = "a step whose code gave up a doubt";
    marked = "a marked version";
    updates = "an accepted update";
    updates_refused = "an update that the code does not agree to";
    queued = "an attempt of a queued step";
    queued_lost = "an attempt of a queued step whose worker was lost";
    queued_late = "an attempt of a queued step that was not done in time";
    resumed = "an attempt that goes on where one before it was";
    told = "a message from run to run that arrived";
    untold = "a message from run to run that nobody took";
    upserts = "an upsert";
    calm = "a world in which all goes well";
    wide = "a fan-out";
    healed = "something that only the sweep found";
    updates_answered = "an answered update";
    failed = "a failed run";
    continued = "a workflow that went on in a new run";
    children = "a child";
    children_stopped = "a child that was stopped with its parent";
    swept = "something to tell that only the sweep told";
    canceled = "a canceled run";
    terminated = "a terminated run";
}

impl World {
    /// Every event, as soon as it is there.
    pub(crate) fn check_new_events(&mut self) {
        for run in self.store.take_touched() {
            if let Err(problem) = self.check_run(run) {
                self.fail(&format!("run {run}: {problem}"));
            }
        }
    }

    fn check_run(&mut self, run: RunId) -> Result<(), String> {
        let known = self.watched.get(&run).map_or(0, |w| w.run.seq());
        let tail = self.store.truth().read_events_sync(run, known, usize::MAX);
        let now_max = self.db_max();
        let mut news = tail.iter();
        if known == 0 {
            let Some(first) = news.next() else { return Ok(()) };
            self.watched.insert(run, Watched::new(run, first)?);
        }
        let Some(watched) = self.watched.get_mut(&run) else { return Ok(()) };
        let facts = Facts { done: self.done.get(&run), now_max };
        for event in news {
            let open: Vec<Seq> = watched.run.open_updates().map(|(seq, _)| seq).collect();
            watched.apply(event, &facts)?;
            self.attempts.check(run, event)?;
            self.updates.check(&mut self.totals, (run, watched), event, &open)?;
            let total = match &event.body {
                EventBody::RunBlocked(b) if b.kind == BlockKind::Poison => &mut self.totals.blocked_poison,
                EventBody::RunBlocked(_) => &mut self.totals.blocked_nondeterminism,
                EventBody::StepInDoubt { .. } => &mut self.totals.doubts,
                EventBody::StepResolved(_) => &mut self.totals.resolved,
                EventBody::StepFailed { failure, .. } if failure.kind == IN_DOUBT => {
                    &mut self.totals.given_up
                }
                EventBody::StepFailed { failure, .. } if failure.kind == check::WORKER_LOST => {
                    &mut self.totals.queued_lost
                }
                EventBody::StepFailed { failure, .. } if failure.kind == STEP_TIMEOUT => {
                    &mut self.totals.queued_late
                }
                EventBody::ExternalResolved { failure: None, .. } => &mut self.totals.told,
                EventBody::ExternalResolved { failure: Some(_), .. } => &mut self.totals.untold,
                EventBody::AttributesUpserted { .. } => &mut self.totals.upserts,
                EventBody::VersionMarked { .. } => &mut self.totals.marked,
                EventBody::RunFailed { .. } => &mut self.totals.failed,
                EventBody::RunCanceled { .. } => &mut self.totals.canceled,
                EventBody::RunTerminated { .. } => &mut self.totals.terminated,
                _ => continue,
            };
            *total += 1;
        }
        self.totals.events += tail.len() as u64;
        if tail.is_empty() {
            return Ok(());
        }
        let tables = self.store.truth().run_tables_sync(run);
        watched.tables(tables.as_ref())?;
        // What a node looks for while it runs must not accuse a run that is sound.
        let misfit = self.store.truth().wake_rows_sync(&[run]).iter().find_map(WakeRows::misfit);
        if let Some(misfit) = misfit {
            return Err(format!("the scan for INV-25 finds {misfit}"));
        }
        if tail.last().is_some_and(worker::is_parked)
            && let Some(tables) = &tables
        {
            self.totals.parked += 1;
            watched.parked(&self.store.truth().read_events_sync(run, 0, usize::MAX), tables)?;
        }
        Ok(())
    }

    /// Open runs, in words.
    pub(crate) fn stuck(&self) -> Vec<String> {
        let truth = self.store.truth();
        let open = self.watched.iter().filter(|(_, w)| w.is_open());
        open.map(|(run, watched)| {
            let history = truth.read_events_sync(*run, 0, usize::MAX);
            let kinds: Vec<String> =
                history.iter().map(|e| format!("{}@{}", e.body.kind(), e.epoch)).collect();
            let waits = watched.waits(&history);
            format!("{run} {kinds:?} waits for {waits:?} {:?}", truth.run_tables_sync(*run))
        })
        .collect()
    }

    pub(crate) fn check_end(&mut self) {
        let (mut runs, mut chained) = (BTreeSet::new(), 0);
        let none = Done::default();
        for client in &self.clients {
            let Some(run) = client.run else { self.fail("a start was never answered") };
            if !runs.insert(run) {
                self.fail(&format!("run {run} is the answer to two starts"));
            }
            let (mut part, mut next, mut kept) = (0, Some(run), Vec::new());
            while let Some(run) = next {
                let history = self.store.truth().read_events_sync(run, 0, usize::MAX);
                let Some(watched) = self.watched.get(&run) else {
                    self.fail(&format!("run {run} is nowhere"))
                };
                let done = self.done.get(&run).unwrap_or(&none);
                if let Err(problem) = watched.check_end((client, part), done, &history) {
                    self.fail(&format!("run {run}: {problem}"));
                }
                kept.extend(watched.kept(&history));
                runs.insert(run);
                next = watched.run.successor();
                part += 1;
            }
            // Over the whole chain: each signal is taken, or left over, in one of its runs.
            let once = |id: &&String| kept.iter().filter(|kept| kept == id).count() != 1;
            let wrong: Vec<&String> = client.acked.iter().chain(&kept).filter(once).collect();
            if part != client.parts.len() || !wrong.is_empty() {
                self.fail(&format!("the chain of {run} has {part} runs, and lost or doubled {wrong:?}"));
            }
            chained += u64::from(part > 1);
        }
        self.check_children(&mut runs);
        if self.watched.len() != runs.len() {
            self.fail(&format!("{} runs of {} clients", self.watched.len(), self.clients.len()));
        }
        self.check_updates();
        self.totals.continued = chained;
        self.totals.calm = u64::from(self.calm);
        self.totals.wide = self.clients.iter().filter(|c| c.program.source.is_wide()).count() as u64;
        self.totals.runs += runs.len() as u64;
        self.totals.re_executed = self.executed.values().map(|n| n - 1).sum();
        let fired = self.store.fired();
        self.totals.replies_lost = fired.replies_lost;
        self.totals.requests_lost = fired.requests_lost;
        self.totals.commits_late = fired.commits_late;
        self.totals.unavailable = fired.unavailable;
        self.count_nodes();
    }
}
