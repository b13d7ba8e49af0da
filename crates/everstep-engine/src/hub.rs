//! Who on this node waits for news of which run.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use everstep_core::{Run, RunId, RunStatus, Seq};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::driver::Shared;
use crate::{Closed, Error};

/// Ends of runs remembered for clients that ask a moment later.
const ENDS_MAX: usize = 4_096;
/// Names remembered, so that asking for a run by its id reads nothing.
const NAMES_MAX: usize = 16_384;
/// Results larger than this are read from the log again.
const END_BYTES_MAX: usize = 4_096;
/// How long a waiter trusts silence when other nodes may append unheard.
const TAIL_CHECK: Duration = Duration::from_secs(1);
/// Runs that are looked at in one read.
const LOOK_MAX: usize = 1_000;

#[derive(Clone, Debug, Default)]
struct News {
    tail: Seq,
    closed: Option<Arc<Closed>>,
    /// The run ended, but how has to be read from the log.
    ended: bool,
}

#[derive(Debug)]
struct Inner {
    waiting: HashMap<RunId, watch::Sender<News>>,
    open_here: HashSet<RunId>,
    ends: Recent<Arc<Closed>>,
    names: Recent<Name>,
    hashes: RandomState,
}

/// What a run is called, which never changes: hashes with a key of this process, because so many names are no small thing
/// and nobody can look for two that are alike.
#[derive(Debug)]
struct Name {
    namespace: u64,
    workflow_id: u64,
}

/// What was learned last of each run, up to a limit; the oldest gives way.
#[derive(Debug)]
struct Recent<T> {
    limit: usize,
    of: HashMap<RunId, T>,
    order: VecDeque<RunId>,
}

impl<T> Recent<T> {
    fn new(limit: usize) -> Self {
        Self { limit, of: HashMap::new(), order: VecDeque::new() }
    }

    fn insert(&mut self, run: RunId, value: T) {
        if self.of.insert(run, value).is_some() {
            return;
        }
        self.order.push_back(run);
        if self.order.len() > self.limit
            && let Some(old) = self.order.pop_front()
        {
            self.of.remove(&old);
        }
    }
}

/// News of runs for waiting clients.
#[derive(Debug)]
pub(crate) struct Hub {
    inner: Arc<Mutex<Inner>>,
    shared_with_others: bool,
}

/// One waiter.
#[derive(Debug)]
pub(crate) struct Watch {
    run: RunId,
    news: watch::Receiver<News>,
    inner: Arc<Mutex<Inner>>,
    shared_with_others: bool,
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn new(shared_with_others: bool) -> Self {
        let inner = Inner {
            waiting: HashMap::new(),
            open_here: HashSet::new(),
            ends: Recent::new(ENDS_MAX),
            names: Recent::new(NAMES_MAX),
            hashes: RandomState::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), shared_with_others }
    }

    pub(crate) fn watch(&self, run: RunId) -> Watch {
        let mut inner = lock(&self.inner);
        let news = inner.waiting.entry(run).or_insert_with(|| watch::channel(News::default()).0).subscribe();
        Watch { run, news, inner: Arc::clone(&self.inner), shared_with_others: self.shared_with_others }
    }

    /// This node holds the open run in memory, so it hears of its end.
    pub(crate) fn opened(&self, run: RunId) {
        lock(&self.inner).open_here.insert(run);
    }

    /// This node let go of the run.
    pub(crate) fn dropped(&self, run: RunId) {
        lock(&self.inner).open_here.remove(&run);
    }

    pub(crate) fn tail(&self, run: RunId, tail: Seq) {
        if let Some(sender) = lock(&self.inner).waiting.get(&run) {
            sender.send_modify(|n| n.tail = n.tail.max(tail));
        }
    }

    /// Another node says that the run ended.
    pub(crate) fn ended_elsewhere(&self, run: RunId, tail: Seq) {
        if let Some(sender) = lock(&self.inner).waiting.get(&run) {
            sender.send_modify(|n| {
                n.tail = n.tail.max(tail);
                n.ended = true;
            });
        }
    }

    pub(crate) fn closed(&self, run: &Run) {
        let closed = Arc::new(closed_of(run));
        let mut inner = lock(&self.inner);
        inner.open_here.remove(&run.id());
        if let Some(sender) = inner.waiting.get(&run.id()) {
            sender.send_modify(|n| {
                n.tail = n.tail.max(run.seq());
                n.closed = Some(Arc::clone(&closed));
            });
        }
        if closed.result.data.len() <= END_BYTES_MAX {
            inner.ends.insert(run.id(), closed);
        }
    }

    /// The run has this name.
    pub(crate) fn named(&self, run: RunId, namespace: &str, workflow_id: &str) {
        let mut inner = lock(&self.inner);
        let (namespace, workflow_id) = (inner.hashes.hash_one(namespace), inner.hashes.hash_one(workflow_id));
        inner.names.insert(run, Name { namespace, workflow_id });
    }

    /// True when the run is known to be in the namespace and, if one is given, to have the workflow id.
    pub(crate) fn is_named(&self, run: RunId, namespace: &str, workflow_id: Option<&str>) -> bool {
        let inner = lock(&self.inner);
        let hash = |text: &str| inner.hashes.hash_one(text);
        inner.names.of.get(&run).is_some_and(|name| {
            name.namespace == hash(namespace) && workflow_id.is_none_or(|w| name.workflow_id == hash(w))
        })
    }

    /// Runs that somebody waits for and that have not ended as far as is known here.
    fn open_waited_for(&self) -> Vec<RunId> {
        let inner = lock(&self.inner);
        let open = |sender: &watch::Sender<News>| {
            let news = sender.borrow();
            !news.ended && news.closed.is_none()
        };
        inner.waiting.iter().filter(|(_, sender)| open(sender)).map(|(run, _)| *run).collect()
    }

    fn end(&self, run: RunId) -> Option<Arc<Closed>> {
        lock(&self.inner).ends.of.get(&run).cloned()
    }
}

impl Watch {
    /// See [`RunWatch::changed`](crate::RunWatch::changed).
    pub(crate) async fn changed(&mut self, seen: Seq) -> Seq {
        let wait = async {
            loop {
                {
                    let news = self.news.borrow_and_update();
                    if news.tail > seen || news.ended || news.closed.is_some() {
                        return;
                    }
                }
                if self.news.changed().await.is_err() {
                    return;
                }
            }
        };
        let hears_all = !self.shared_with_others;
        let limit = if hears_all { TAIL_CHECK * 10 } else { TAIL_CHECK };
        // Running out of time is an answer too: the caller looks at the log.
        let _ = tokio::time::timeout(limit, wait).await;
        self.news.borrow().tail
    }

    /// Waits until something is said of the run, be it known already.
    pub(crate) async fn news(&mut self) {
        // The hub keeps the sender for as long as there is a watch.
        let _ = self.news.changed().await;
    }

    /// Waits for the run's end as this node hears of it, at most until `until`. On a single node every
    /// end passes through here, also that of a run which is not in memory now; of one that another node ended
    /// unheard, [`looks`] tells.
    async fn closed(&mut self, until: Instant) -> Option<Arc<Closed>> {
        let wait = async {
            loop {
                {
                    let news = self.news.borrow_and_update();
                    if news.closed.is_some() || news.ended {
                        return news.closed.clone();
                    }
                }
                if self.news.changed().await.is_err() {
                    return None;
                }
            }
        };
        timeout_at(until, wait).await.ok().flatten()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut inner = lock(&self.inner);
        // The last receiver takes the entry with it.
        if inner.waiting.get(&self.run).is_some_and(|s| s.receiver_count() <= 1) {
            inner.waiting.remove(&self.run);
        }
    }
}

/// How `run` ended.
pub(crate) fn closed_of(run: &Run) -> Closed {
    let (status, successor) = (run.status(), run.successor());
    Closed { status, result: run.result().clone(), failure: run.failure().cloned(), successor }
}

/// See [`Engine::wait_closed`](crate::Engine::wait_closed).
pub(crate) async fn wait_closed(
    shared: &Shared,
    run: RunId,
    wait: Duration,
) -> Result<Option<Closed>, Error> {
    let hub = &shared.hub;
    if let Some(closed) = hub.end(run) {
        return Ok(Some((*closed).clone()));
    }
    let deadline = Instant::now() + wait;
    let mut watch = hub.watch(run);
    let mut known_open = lock(&hub.inner).open_here.contains(&run);
    loop {
        if !known_open && let Some(closed) = read_closed(shared, run).await? {
            return Ok(Some(closed));
        }
        // The end may have come between the first look and the watch.
        if let Some(closed) = hub.end(run) {
            return Ok(Some((*closed).clone()));
        }
        if let Some(closed) = watch.closed(deadline).await {
            return Ok(Some((*closed).clone()));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        known_open = false;
    }
}

/// Looks, for all that wait here at once, whether another node ended their runs and was not heard.
pub(crate) async fn looks(shared: Arc<Shared>) {
    if !shared.hub.shared_with_others {
        return;
    }
    loop {
        tokio::time::sleep(TAIL_CHECK).await;
        let open = shared.hub.open_waited_for();
        for runs in open.chunks(LOOK_MAX) {
            // Without an answer the next look asks again.
            let closed = shared.store.closed_among(runs).await.unwrap_or_default();
            closed.into_iter().for_each(|run| shared.hub.ended_elsewhere(run, 0));
        }
    }
}

/// Reads from the store whether and how a run ended.
async fn read_closed(shared: &Shared, run: RunId) -> Result<Option<Closed>, Error> {
    let Some(record) = shared.store.get_run(run).await? else {
        return Err(Error::RunNotFound(run.to_string()));
    };
    if !record.row.status.is_closed() {
        return Ok(None);
    }
    let events = shared.store.read_events(run, record.row.last_seq.saturating_sub(1), 1).await?;
    let closed = match events.first().map(|e| &e.body) {
        Some(everstep_core::EventBody::RunCompleted { result, .. }) => {
            let (status, result) = (RunStatus::Completed, result.clone());
            Closed { status, result, failure: None, successor: None }
        }
        _ => {
            // Every other end folds to a failure; the fold knows how.
            let all = crate::driver::read_all(shared, run, 0).await?;
            match Run::fold(run, &all) {
                Ok(Some(folded)) => closed_of(&folded),
                Ok(None) => return Err(Error::RunNotFound(run.to_string())),
                Err(e) => return Err(Error::Store(everstep_store::Error::Corrupt(e.to_string()))),
            }
        }
    };
    Ok(Some(closed))
}

#[cfg(test)]
mod tests;
