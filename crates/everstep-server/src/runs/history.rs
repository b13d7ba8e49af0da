//! The stream of a run's events: read in pages, sent in pieces, followed until the run is closed.

use std::collections::VecDeque;

use everstep_core::{Event, RunId, Seq};
use everstep_engine::{Engine, RunWatch};
use everstep_proto::api;
use everstep_proto::wire::encode_event;
use everstep_store::RunRecord;
use futures::Stream;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::status;

/// Events read from the store at one time, which gives fewer when their payloads are large: `PAGE_BYTES_MAX`.
const READ_EVENTS: usize = 500;
/// A response is closed once it has this many bytes.
const RESPONSE_BYTES: usize = 1 << 20;

/// Which part of a history.
pub(super) struct Wanted {
    /// Events with a greater seq.
    pub(super) after: Seq,
    /// Also those that are still to come.
    pub(super) follow: bool,
    /// Most events; 0 for no limit.
    pub(super) limit: u64,
}

/// Reads one run's history for one caller. It reads no further than the caller does.
pub(super) struct Reader {
    engine: Engine,
    run: RunId,
    after: Seq,
    /// Events that may still be sent.
    left: u64,
    /// Present while there may be more to come.
    watch: Option<RunWatch>,
    read: VecDeque<Event>,
    draining: CancellationToken,
}

impl Reader {
    pub(super) fn new(
        engine: &Engine,
        record: &RunRecord,
        wanted: Wanted,
        draining: CancellationToken,
    ) -> Self {
        let Wanted { after, follow, limit } = wanted;
        let run = record.row.run_id;
        let open = !record.row.status.is_closed();
        Self {
            engine: engine.clone(),
            run,
            after,
            left: if limit == 0 { u64::MAX } else { limit },
            watch: (follow && open).then(|| engine.watch(run)),
            read: VecDeque::new(),
            draining,
        }
    }

    pub(super) fn stream(self) -> impl Stream<Item = Result<api::GetHistoryResponse, Status>> + Send {
        futures::stream::try_unfold(self, |mut reader| async move {
            Ok(reader.next().await?.map(|response| (response, reader)))
        })
    }

    async fn next(&mut self) -> Result<Option<api::GetHistoryResponse>, Status> {
        while self.read.is_empty() {
            let limit = usize::try_from(self.left).unwrap_or(READ_EVENTS).min(READ_EVENTS);
            if limit == 0 {
                return Ok(None);
            }
            let events = self
                .engine
                .store()
                .read_events(self.run, self.after, limit)
                .await
                .map_err(|e| status::of_store(&e))?;
            let Some(last) = events.last() else {
                let Some(watch) = &mut self.watch else { return Ok(None) };
                tokio::select! {
                    _ = watch.changed(self.after) => continue,
                    () = self.draining.cancelled() => return Err(status::stopping()),
                }
            };
            self.after = last.seq;
            self.left = self.left.saturating_sub(events.len() as u64);
            if last.body.is_terminal() {
                self.watch = None;
            }
            self.read.extend(events);
        }
        Ok(Some(self.response()))
    }

    /// One piece of what was read: at least one event.
    fn response(&mut self) -> api::GetHistoryResponse {
        let mut events = Vec::new();
        let mut bytes = 0;
        while let Some(event) = self.read.front() {
            let encoded = encode_event(event, false);
            bytes += encoded.encoded_len();
            if bytes > RESPONSE_BYTES && !events.is_empty() {
                break;
            }
            events.push(encoded);
            self.read.pop_front();
        }
        api::GetHistoryResponse { events }
    }
}
