//! Answers that their callers do not take: given up after a while, so that what they hold is free again.
//!
//! A caller may ask for megabytes on each of its streams, keep its window shut and answer every ping. The
//! transport asks for the next piece of an answer only when the last one has gone, so what is not asked for
//! stays here, where it can be dropped. A stream that has nothing to say is not waiting.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::{reason, status};

/// Most of an answer that the transport is given at one time, and may have to keep.
const PIECE_BYTES: usize = 16 << 10;
/// How long a caller may take nothing, as long as few do.
const PATIENCE: Duration = Duration::from_secs(600);
/// Answers that wait before patience runs short.
const FEW: usize = 64;
const SHORT_PATIENCE: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The layer, and the list of what waits.
#[derive(Clone, Debug, Default)]
pub(super) struct Patience {
    answers: Arc<Mutex<Vec<Weak<Answer>>>>,
}

impl Patience {
    /// Looks after the answers. Never ends.
    pub(super) async fn keep(&self) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look();
        }
    }

    fn look(&self) {
        let mut answers = lock(&self.answers);
        answers.retain(|answer| answer.strong_count() > 0);
        let waiting: Vec<(Arc<Answer>, Duration)> = answers
            .iter()
            .filter_map(Weak::upgrade)
            .filter_map(|answer| answer.waits().map(|waits| (answer, waits)))
            .collect();
        drop(answers);
        let limit = if waiting.len() > FEW { SHORT_PATIENCE } else { PATIENCE };
        let given_up = waiting.iter().filter(|(_, waits)| *waits >= limit);
        let count = given_up.map(|(answer, _)| answer.give_up()).count();
        if count > 0 {
            tracing::info!(count, "gave up answers that nobody takes");
        }
    }

    /// Puts an answer's body under guard.
    async fn guard(&self, response: Response<Body>) -> Response<Body> {
        if response.body().is_end_stream() || !is_grpc(response.headers()) {
            return response;
        }
        let (parts, body) = response.into_parts();
        let mut state = State::of(body);
        let whole = std::future::poll_fn(|cx| Poll::Ready(state.gather(cx))).await;
        let small = whole && state.ready_bytes() <= PIECE_BYTES;
        let answer = Arc::new(Answer { state: Mutex::new(state) });
        if !small {
            lock(&self.answers).push(Arc::downgrade(&answer));
        }
        Response::from_parts(parts, Body::new(Guarded { answer }))
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One answer, shared by the transport that sends it and the list of what waits.
#[derive(Debug)]
struct Answer {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    body: Body,
    /// What came out of the body and was not asked for yet.
    ready: VecDeque<Result<Frame<Bytes>, Status>>,
    /// Since when the transport has not asked; `None` while it has, and the body has nothing.
    unasked: Option<Instant>,
    given_up: bool,
}

impl State {
    fn of(body: Body) -> Self {
        Self { body, ready: VecDeque::new(), unasked: Some(Instant::now()), given_up: false }
    }

    /// Takes what is there at once: all of a unary answer, the beginning of a stream. True when that is all.
    fn gather(&mut self, cx: &mut Context<'_>) -> bool {
        for _ in 0..2 {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(frame)) => {
                    let last = frame.as_ref().is_ok_and(Frame::is_trailers);
                    self.ready.push_back(frame);
                    if last {
                        return true;
                    }
                }
                Poll::Ready(None) => return true,
                Poll::Pending => return false,
            }
        }
        false
    }

    fn ready_bytes(&self) -> usize {
        self.ready.iter().flatten().filter_map(Frame::data_ref).map(Bytes::len).sum()
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = match self.ready.pop_front() {
            Some(frame) => Some(frame),
            None if self.given_up => None,
            None => match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    self.unasked = None;
                    return Poll::Pending;
                }
            },
        };
        self.unasked = Some(Instant::now());
        Poll::Ready(next.map(|frame| frame.map(|frame| self.piece(frame))))
    }

    /// As much of a frame as the transport may have; the rest waits.
    fn piece(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_data() {
            Ok(mut data) if data.len() > PIECE_BYTES => {
                let piece = data.split_to(PIECE_BYTES);
                self.ready.push_front(Ok(Frame::data(data)));
                Frame::data(piece)
            }
            Ok(data) => Frame::data(data),
            Err(trailers) => trailers,
        }
    }
}

impl Answer {
    /// How long the caller has taken nothing.
    fn waits(&self) -> Option<Duration> {
        lock(&self.state).unasked.map(|since| since.elapsed())
    }

    /// Drops what there is; a caller that comes back is told.
    fn give_up(&self) {
        let mut state = lock(&self.state);
        let told =
            status::of(reason::DISCONNECTED, "nothing of this answer was taken for too long; ask again");
        let mut trailers = HeaderMap::new();
        let last = told.add_header(&mut trailers).map(|()| Frame::trailers(trailers));
        *state = State { body: Body::empty(), ready: VecDeque::from([last]), unasked: None, given_up: true };
    }
}

/// The body that the transport sees.
struct Guarded {
    answer: Arc<Answer>,
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        lock(&self.answer.state).next(cx)
    }
}

impl<S> Layer<S> for Patience {
    type Service = PatientService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PatientService { inner, patience: self.clone() }
    }
}

/// The layer around a service.
#[derive(Clone, Debug)]
pub(super) struct PatientService<S> {
    inner: S,
    patience: Patience,
}

impl<S> Service<Request<Body>> for PatientService<S>
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
        let call = self.inner.call(request);
        let patience = self.patience.clone();
        Box::pin(async move { Ok(patience.guard(call.await?).await) })
    }
}
