//! A run as a `.history` file.

use everstep_core::Timestamp;
use everstep_proto::api;
use everstep_proto::file;
use everstep_store::RunRecord;
use futures::{Stream, StreamExt};
use prost::Message;
use tonic::Status;

use super::RunApi;
use super::history::{Reader, Wanted};

/// The file in pieces: up to the event that was the last one when the call came, so that an open run has an end too.
pub(super) fn stream(
    runs: &RunApi,
    record: &RunRecord,
    now: Timestamp,
) -> impl Stream<Item = Result<api::ExportHistoryResponse, Status>> + Send + use<> {
    let (run_id, events) = (record.row.run_id, record.tail_seq);
    let header = file::header(run_id, &record.row.namespace, events, Some(now));
    let wanted = Wanted { after: 0, follow: false, limit: events };
    let reader = Reader::new(&runs.engine, record, wanted, runs.draining.clone());
    let pieces = reader.stream().map(|piece| {
        let mut data = Vec::new();
        for event in piece?.events {
            data.extend(event.encode_length_delimited_to_vec());
        }
        Ok(api::ExportHistoryResponse { data: data.into() })
    });
    futures::stream::once(async { Ok(api::ExportHistoryResponse { data: header.into() }) }).chain(pieces)
}
