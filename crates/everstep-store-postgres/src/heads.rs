//! The first events of many runs in one read. Most histories are short and their payloads small, and for those a page
//! that adds up its bytes costs several times as much.

use everstep_core::{RunId, Seq};
use everstep_store::{Error, HEAD_MAX, Head};
use sqlx::Row as _;
use uuid::Uuid;

use crate::PostgresStore;
use crate::connect::InTime as _;
use crate::error::before;
use crate::rows::event;

/// Payload bytes in the answer to one question at most.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// The columns of an event `e`; whether it is small enough, `$4` bytes, to be here; and the number of its run. The
/// payload of one that is too large, or that is kept elsewhere, is not read.
macro_rules! columns {
    ($number:expr) => {
        concat!(
            "SELECT e.seq, e.at, e.epoch, e.step_id, e.attempt, e.command_id, e.kind, e.step, e.actor, e.attrs, e.encoding,
                    CASE WHEN octet_length(e.payload) <= $4 THEN e.payload END, e.payload_hash,
                    e.payload_hash IS NULL AND coalesce(octet_length(e.payload), 0) <= $4
                    AND (e.kind <> 'AttributesUpserted' OR octet_length(e.attrs) <= $4), ",
            $number
        )
    };
}

/// `$1` run, `$2` after which event, `$3` rows.
const OF_ONE: &str = concat!(
    columns!("1::bigint"),
    " FROM events e WHERE e.run_id = $1 AND e.seq > $2 ORDER BY e.seq LIMIT $3"
);

/// `$1` runs, `$2` after which event of each, `$3` rows of each.
const OF_MANY: &str = concat!(
    columns!("h.number"),
    " FROM unnest($1::uuid[], $2::bigint[]) WITH ORDINALITY AS h(run_id, after, number)
     CROSS JOIN LATERAL (SELECT * FROM events WHERE run_id = h.run_id AND seq > h.after ORDER BY seq LIMIT $3) e
     ORDER BY h.number, e.seq"
);

impl PostgresStore {
    /// See [`everstep_store::Log::read_heads`].
    pub(crate) async fn heads(&self, runs: &[(RunId, Seq)]) -> Result<Vec<Result<Head, Error>>, Error> {
        let after = |seq: Seq| i64::try_from(seq).unwrap_or(i64::MAX);
        let query = match runs {
            // Several times as fast as the other for one.
            [(run, seq)] => sqlx::query(OF_ONE).bind(run.uuid()).bind(after(*seq)),
            _ => {
                let (ids, afters): (Vec<Uuid>, Vec<i64>) =
                    runs.iter().map(|(run, seq)| (run.uuid(), after(*seq))).unzip();
                sqlx::query(OF_MANY).bind(ids).bind(afters)
            }
        };
        let bytes = BYTES_MAX / HEAD_MAX / runs.len().max(1);
        let rows = query
            // One more says that there are more.
            .bind(i64::try_from(HEAD_MAX + 1).unwrap_or(i64::MAX))
            .bind(i32::try_from(bytes).unwrap_or(i32::MAX))
            .fetch_all(&self.pool)
            .in_time(self.answer_limit)
            .await
            .map_err(before)?;
        let mut heads: Vec<Result<Head, Error>> = runs.iter().map(|_| Ok(Head::default())).collect();
        for row in &rows {
            let (fits, number): (bool, i64) =
                (row.try_get(13).map_err(before)?, row.try_get(14).map_err(before)?);
            let at = usize::try_from(number - 1).unwrap_or(usize::MAX);
            let (Some((run, _)), Some(head)) = (runs.get(at), heads.get_mut(at)) else { continue };
            match head {
                Ok(page) if page.more || !fits || page.events.len() == HEAD_MAX => page.more = true,
                Ok(page) => match event(*run, row) {
                    Ok(event) => page.events.push(event),
                    Err(error) => *head = Err(error),
                },
                Err(_) => {}
            }
        }
        Ok(heads)
    }
}
