//! What requests may take in memory, all connections together: counted as their bytes come in, until they are
//! carried out.
//!
//! Without it every client could have a message of the largest size half sent, or wait with it for the store. Small
//! requests are not counted, so that they go on being served when large ones have taken everything; how many of
//! them there can be at one time is limited by the calls.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Bytes, HttpBody};
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::DECODE_BYTES_MAX;
use crate::{reason, status};

/// What a request may have without being counted.
const FREE_BYTES: usize = 16 << 10;
/// How often the log hears of refusals.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
/// What comes before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// The most that one byte of gzip can become.
const GZIP_GROWTH_MAX: usize = 1_032;

/// The layer, and what there is for all.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    limit: usize,
    taken: AtomicUsize,
    warned: Mutex<Option<Instant>>,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { pool: Arc::new(Pool { limit, taken: AtomicUsize::new(0), warned: Mutex::new(None) }) }
    }

    /// Bytes that are taken now.
    #[cfg(test)]
    fn taken(&self) -> usize {
        self.pool.taken.load(Ordering::Relaxed)
    }
}

impl Pool {
    fn take(&self, bytes: usize) -> Result<(), Status> {
        let room = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= self.limit);
        if self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok() {
            return Ok(());
        }
        let mut warned = lock(&self.warned);
        if warned.is_none_or(|last| last.elapsed() >= WARN_INTERVAL) {
            *warned = Some(Instant::now());
            tracing::warn!(limit = self.limit, "refusing large requests: they take all the memory they may");
        }
        Err(status::of(
            reason::REQUEST_BYTES_EXHAUSTED,
            format!("the requests under way take all of the {} bytes that the node has for them", self.limit),
        ))
    }

    fn give(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one call has taken; in the extensions of its request. Gives it back when it is dropped.
#[derive(Clone, Debug)]
pub(crate) struct InFlight(Arc<Tab>);

impl InFlight {
    /// The request is carried out, although its answer may take a while yet.
    pub(crate) fn settle(&self) {
        let mut state = lock(&self.0.state);
        state.settled = true;
        state.whole = 0;
        self.0.give_back(&mut state);
    }
}

#[derive(Debug)]
struct Tab {
    pool: Arc<Pool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Messages that came whole and may still be worked on.
    whole: usize,
    /// The message that is coming in.
    partial: usize,
    /// What of it is taken from the pool.
    taken: usize,
    /// From now on a message is done with as soon as the next one is asked for: the stream of a worker.
    settled: bool,
}

impl State {
    fn due(&self) -> usize {
        self.whole.saturating_add(self.partial).saturating_sub(FREE_BYTES)
    }
}

impl Tab {
    /// Somebody wants more of the request: what came before was taken out of the buffer.
    fn asked(&self) {
        let mut state = lock(&self.state);
        if state.settled && state.whole > 0 {
            state.whole = 0;
            self.give_back(&mut state);
        }
    }

    fn came(&self, framing: &mut Framing, bytes: &[u8]) -> Result<(), Status> {
        let mut state = lock(&self.state);
        state.whole = state.whole.saturating_add(framing.feed(bytes));
        state.partial = framing.partial();
        let more = state.due().saturating_sub(state.taken);
        if more > 0 {
            self.pool.take(more)?;
            state.taken += more;
        } else {
            self.give_back(&mut state);
        }
        Ok(())
    }

    fn give_back(&self, state: &mut State) {
        let due = state.due();
        self.pool.give(state.taken.saturating_sub(due));
        state.taken = state.taken.min(due);
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.pool.give(state.taken);
    }
}

/// Finds the messages in a request's bytes.
#[derive(Debug, Default)]
struct Framing {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the message so far, its prefix included.
    have: usize,
}

impl Framing {
    /// Takes bytes in; gives the weight of the messages that are whole with them.
    fn feed(&mut self, mut bytes: &[u8]) -> usize {
        let mut whole = 0_usize;
        while !bytes.is_empty() {
            if self.have < PREFIX_BYTES {
                let (now, rest) = bytes.split_at(bytes.len().min(PREFIX_BYTES - self.have));
                self.prefix[self.have..self.have + now.len()].copy_from_slice(now);
                self.have += now.len();
                bytes = rest;
            }
            if self.have >= PREFIX_BYTES {
                let now = bytes.len().min(self.whole_bytes() - self.have);
                self.have += now;
                bytes = &bytes[now..];
                if self.have == self.whole_bytes() {
                    whole = whole.saturating_add(self.partial());
                    self.have = 0;
                }
            }
        }
        whole
    }

    fn whole_bytes(&self) -> usize {
        let [_, length @ ..] = self.prefix;
        PREFIX_BYTES.saturating_add(u32::from_be_bytes(length) as usize)
    }

    /// What the message that is coming in takes, or will take once it is unpacked.
    fn partial(&self) -> usize {
        let packed = self.have > PREFIX_BYTES && self.prefix[0] != 0;
        let unpacked = self.have.saturating_mul(GZIP_GROWTH_MAX).min(DECODE_BYTES_MAX);
        if packed { self.have.saturating_add(unpacked) } else { self.have }
    }
}

/// The body that the service sees.
struct Counted {
    body: Body,
    framing: Framing,
    tab: Arc<Tab>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.tab.asked();
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let Self { framing, tab, .. } = &mut *self;
            if let Err(refused) = tab.came(framing, data) {
                return Poll::Ready(Some(Err(refused)));
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<S> Layer<S> for Budget {
    type Service = BudgetService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BudgetService { inner, budget: self.clone() }
    }
}

/// The layer around a service.
#[derive(Clone, Debug)]
pub(super) struct BudgetService<S> {
    inner: S,
    budget: Budget,
}

impl<S> Service<Request<Body>> for BudgetService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let tab = Arc::new(Tab { pool: Arc::clone(&self.budget.pool), state: Mutex::default() });
        let in_flight = InFlight(Arc::clone(&tab));
        let mut request = request.map(|body| Body::new(Counted { body, framing: Framing::default(), tab }));
        request.extensions_mut().insert(in_flight.clone());
        let call = self.inner.call(request);
        Box::pin(async move {
            let response = call.await;
            in_flight.settle();
            response
        })
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt;

    use super::*;

    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;

    fn message(flag: u8, bytes: usize) -> Vec<u8> {
        let length = u32::try_from(bytes).unwrap().to_be_bytes();
        [&[flag][..], &length, &vec![7; bytes]].concat()
    }

    /// A call of `budget`, and where its bytes are found.
    fn call(budget: &Budget) -> (InFlight, Framing) {
        let tab = Tab { pool: Arc::clone(&budget.pool), state: Mutex::default() };
        (InFlight(Arc::new(tab)), Framing::default())
    }

    #[test]
    fn messages_are_found_wherever_the_bytes_are_cut() {
        let bytes = [message(0, 300), message(0, 0), message(1, 3), message(0, 9)].concat();
        for cut in 1..bytes.len() {
            let mut framing = Framing::default();
            let whole: usize = bytes.chunks(cut).map(|piece| framing.feed(piece)).sum();
            assert_eq!((whole, framing.partial()), (305 + 5 + 8 + 8 * GZIP_GROWTH_MAX + 14, 0), "{cut}");
        }
    }

    #[test]
    fn what_is_packed_counts_for_what_it_can_become() {
        let mut framing = Framing::default();
        framing.feed(&message(1, 2 * KIB)[..100]);
        assert_eq!(framing.partial(), 100 + 100 * GZIP_GROWTH_MAX);
        assert!(framing.feed(&message(1, 2 * MIB)[100..]) <= 3 * DECODE_BYTES_MAX);
    }

    #[test]
    fn bytes_are_taken_as_they_come_and_given_back_once() {
        let budget = Budget::new(MIB);
        let bytes = message(0, 900 * KIB);
        let (unary, mut framing) = call(&budget);
        for (piece, i) in bytes.chunks(100 * KIB).zip(1..) {
            unary.0.came(&mut framing, piece).unwrap();
            assert_eq!(budget.taken(), (i * 100 * KIB).min(bytes.len()) - FREE_BYTES);
        }
        // The service asks whether there is more, and has all it needs, but is not done.
        unary.0.asked();
        assert_eq!(budget.taken(), bytes.len() - FREE_BYTES);
        unary.settle();
        assert_eq!(budget.taken(), 0);
        drop(unary);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn who_comes_too_late_is_refused_and_small_requests_are_not() {
        let budget = Budget::new(MIB);
        let (large, mut framing) = call(&budget);
        large.0.came(&mut framing, &message(0, MIB)).unwrap();
        let (late, mut framing) = call(&budget);
        let bytes = message(0, 40 * KIB);
        late.0.came(&mut framing, &bytes[..FREE_BYTES]).unwrap();
        let refused = late.0.came(&mut framing, &bytes[FREE_BYTES..]).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert_eq!(refused.get_details_error_info().unwrap().reason, "REQUEST_BYTES_EXHAUSTED");
        assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
        let (small, mut framing) = call(&budget);
        small.0.came(&mut framing, &message(0, FREE_BYTES - PREFIX_BYTES)).unwrap();
        drop(large);
        let (next, mut framing) = call(&budget);
        next.0.came(&mut framing, &message(0, MIB)).unwrap();
        drop((late, small, next));
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn a_stream_holds_what_it_works_on() {
        let budget = Budget::new(10 * MIB);
        let (stream, mut framing) = call(&budget);
        stream.0.came(&mut framing, &message(0, 100)).unwrap();
        stream.settle();
        for _ in 0..100 {
            let bytes =
                [message(0, MIB), message(0, 2 * MIB), message(0, MIB)[..100 * KIB].to_vec()].concat();
            stream.0.came(&mut framing, &bytes).unwrap();
            assert_eq!(budget.taken(), bytes.len() - FREE_BYTES);
            // Both messages are done with, the third is not there yet.
            stream.0.asked();
            assert_eq!(budget.taken(), 100 * KIB - FREE_BYTES);
            stream.0.came(&mut framing, &message(0, MIB)[100 * KIB..]).unwrap();
            stream.0.asked();
            assert_eq!(budget.taken(), 0);
        }
        stream.0.came(&mut framing, &message(0, MIB)[1..]).unwrap();
        drop(stream);
        assert_eq!(budget.taken(), 0);
    }
}
