//! The append, as SQL: one statement for many runs, made of the parts that a batch needs.
//!
//! Each run's first event is inserted where its predecessor stands and nothing stands in its place; everything
//! else is for the runs that won. Those are compared as an array, and predecessors are looked up by scalar
//! subqueries, which the planner leaves as they are: as joins both become nested loops over whole lists, whose
//! cost grows with the square of the batch. Rows are inserted in the order of the arrays, which are sorted by
//! run, so that two nodes meet in the same order. At first nothing is said about conflicts, because saying so
//! makes each insert look twice and write a second record to the WAL: a place that is taken fails the whole
//! statement, which is then made again with `ON CONFLICT DO NOTHING` (*careful*). `{events}` is the table or its one partition that matters;
//! each `?` is the next parameter.

mod attribute_rows;
mod between_rows;
mod step_rows;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// Texts that are kept; a day has a few dozen.
const TEXTS_MAX: usize = 512;

static TEXTS: RwLock<BTreeMap<(Parts, Day), Arc<str>>> = RwLock::new(BTreeMap::new());

/// A day as yyyymmdd, whose partition is meant; none for all.
pub(crate) type Day = Option<u32>;

/// A part of the statement. They stand in this order, and so do their parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    Lone,
    One,
    First,
    Many,
    Claimed,
    Inserted { later: bool, claims: bool },
    Requests,
    Payloads,
    Runs,
    TimersSet,
    TimersDeleted,
    TasksSet,
    TasksDeleted,
    WakesSet,
    WakesDeleted,
    DoubtsSet,
    DoubtsDeleted,
    StepsSet,
    StepsDeleted,
    OutboxSet,
    OutboxDeleted,
    Links,
    AttributesSet,
    AttributesDeleted,
    Answer,
}

/// Which parts a statement has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Parts(u32);

/// Beside the bits of the parts: places may be taken.
const CAREFUL: u32 = 1 << 31;

const IGNORE: &str = "
    ON CONFLICT DO NOTHING";

const COLUMNS: &str = "run_id, seq, at, epoch, step_id, attempt, command_id, kind, step, actor, attrs, \
                                  encoding, payload, payload_hash";

/// One event.
const INPUT_ONE: &str = "WITH input AS (
    SELECT ?::uuid AS run_id, ?::bigint AS seq, ?::timestamptz AS at, ?::int AS epoch, ?::int AS step_id,
           ?::int AS attempt, ?::uuid AS command_id, ?::text AS kind, ?::text AS step, ?::text AS actor,
           ?::text AS attrs, ?::text AS encoding, ?::bytea AS payload, ?::bytea AS payload_hash
)";

/// One event and nothing beside it, without a part that the executor would have to carry through.
const LONE: &str = "INSERT INTO {events} ({columns})
    SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
     WHERE (SELECT true FROM {events} p WHERE p.run_id = $1 AND p.seq = $2 - 1){ignore}
    RETURNING clock_timestamp() AS now, ARRAY[run_id] AS winners";

/// One event of each run.
const INPUT_FIRST: &str = "WITH input AS (
    SELECT * FROM unnest(?::uuid[], ?::bigint[], ?::timestamptz[], ?::int[], ?::int[], ?::int[], ?::uuid[], ?::text[],
                         ?::text[], ?::text[], ?::text[], ?::text[], ?::bytea[], ?::bytea[])
           AS t({columns})
)";

/// Events of which some are not the first of their run.
const INPUT: &str = "WITH input AS (
    SELECT * FROM unnest(?::uuid[], ?::bigint[], ?::timestamptz[], ?::int[], ?::int[], ?::int[], ?::uuid[], ?::text[],
                         ?::text[], ?::text[], ?::text[], ?::text[], ?::bytea[], ?::bytea[], ?::bool[])
           AS t({columns}, first)
)";

/// The claims of workflow ids.
const CLAIMED: &str = ", claims AS (
    SELECT * FROM unnest(?::uuid[], ?::text[], ?::text[], ?::uuid[], ?::text[], ?::bytea[])
           AS c(run_id, namespace, workflow_id, expected, request_id, body_hash)
), claimed AS (
    INSERT INTO workflow_ids AS w (run_id, expected, namespace, workflow_id)
    SELECT c.run_id, c.expected, c.namespace, c.workflow_id
      FROM claims c
     WHERE (SELECT true FROM start_requests s
             WHERE s.namespace = c.namespace AND s.workflow_id = c.workflow_id AND s.request_id = c.request_id) IS NULL
       AND (SELECT true FROM {events} e WHERE e.run_id = c.run_id AND e.seq = 1) IS NULL
       AND (c.expected IS NULL
            OR (SELECT true FROM workflow_ids x
                 WHERE x.namespace = c.namespace AND x.workflow_id = c.workflow_id AND x.run_id = c.expected))
     ORDER BY c.namespace, c.workflow_id
    ON CONFLICT (namespace, workflow_id)
    DO UPDATE SET run_id = excluded.run_id, expected = excluded.expected WHERE w.run_id = excluded.expected
    RETURNING w.run_id
)";

const PREDECESSOR: &str = "(SELECT true FROM {events} p WHERE p.run_id = i.run_id AND p.seq = i.seq - 1)";

/// The events; `later` when some are not the first of their run, `claims` when some are the first of all.
fn inserted(later: bool, claims: bool) -> String {
    let first = if later { "i.first AND " } else { "" };
    let admitted = if claims {
        format!(
            "CASE WHEN i.seq = 1 THEN i.run_id = ANY (ARRAY(SELECT run_id FROM claimed)) ELSE {PREDECESSOR} END"
        )
    } else {
        PREDECESSOR.to_owned()
    };
    let rest = if later {
        format!(
            ", rest AS (
    INSERT INTO {{events}} ({{columns}})
    SELECT {{columns}} FROM input i WHERE NOT i.first AND i.run_id = {WON}
)"
        )
    } else {
        String::new()
    };
    format!(
        ", first AS (
    INSERT INTO {{events}} ({{columns}})
    SELECT {{columns}} FROM input i WHERE {first}{admitted}{{ignore}}
    RETURNING run_id
){rest}"
    )
}

/// The runs whose first event was inserted.
const WON: &str = "ANY (ARRAY(SELECT run_id FROM first))";

/// The parts beside the events, each for the runs that won: `{won}` is those.
mod beside {
    pub(crate) const REQUESTS: &str = ", requested AS (
    INSERT INTO start_requests (run_id, namespace, workflow_id, request_id, body_hash)
    SELECT c.run_id, c.namespace, c.workflow_id, c.request_id, c.body_hash FROM claims c WHERE c.run_id = {won}
)";

    pub(crate) const PAYLOADS: &str = ", stored AS (
    INSERT INTO payloads (run_id, hash, data)
    SELECT p.run_id, p.hash, p.data FROM unnest(?::uuid[], ?::bytea[], ?::bytea[]) AS p(run_id, hash, data)
     WHERE p.run_id = {won}
    ON CONFLICT DO NOTHING
)";

    pub(crate) const RUNS: &str = ", shown AS (
    INSERT INTO runs AS r (run_id, namespace, workflow_id, workflow_type, task_queue, status, owner, epoch,
                           build_id, blocked, cancel_requested, started_at, closed_at, last_seq)
    SELECT n.* FROM unnest(?::uuid[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[], ?::uuid[], ?::int[],
                           ?::text[], ?::text[], ?::bool[], ?::timestamptz[], ?::timestamptz[], ?::bigint[])
           AS n(run_id, namespace, workflow_id, workflow_type, task_queue, status, owner, epoch, build_id, blocked,
                cancel_requested, started_at, closed_at, last_seq)
     WHERE n.run_id = {won}
    ON CONFLICT (run_id) DO UPDATE
       SET namespace = excluded.namespace, workflow_id = excluded.workflow_id,
           workflow_type = excluded.workflow_type, task_queue = excluded.task_queue,
           started_at = excluded.started_at, status = excluded.status, owner = excluded.owner,
           epoch = excluded.epoch, build_id = excluded.build_id, blocked = excluded.blocked,
           cancel_requested = excluded.cancel_requested, closed_at = excluded.closed_at,
           last_seq = excluded.last_seq
     WHERE r.last_seq < excluded.last_seq
)";

    pub(crate) const TIMERS_SET: &str = ", timers_set AS (
    INSERT INTO timers (run_id, kind, id, fire_at)
    SELECT s.run_id, s.kind, s.id, s.fire_at
      FROM unnest(?::uuid[], ?::text[], ?::bigint[], ?::timestamptz[]) AS s(run_id, kind, id, fire_at)
     WHERE s.run_id = {won}
    ON CONFLICT (run_id, kind, id) DO UPDATE SET fire_at = excluded.fire_at, claimed_until = NULL
)";

    /// The last three are the timers that the same statement sets: those stay.
    pub(crate) const TIMERS_DELETED: &str = ", timers_deleted AS (
    DELETE FROM timers t
     USING unnest(?::uuid[], ?::text[], ?::bigint[]) AS d(run_id, kind, id)
     WHERE t.run_id = d.run_id AND (d.kind IS NULL OR (t.kind = d.kind AND t.id = d.id)) AND d.run_id = {won}
       AND (SELECT true FROM unnest(?::uuid[], ?::text[], ?::bigint[]) AS s(run_id, kind, id)
             WHERE s.run_id = t.run_id AND s.kind = t.kind AND s.id = t.id) IS NULL
)";

    pub(crate) const TASKS_SET: &str = ", tasks_set AS (
    INSERT INTO tasks (run_id, namespace, task_queue, workflow_type, build_id, claims, next_claim_at)
    SELECT s.run_id, s.namespace, s.task_queue, s.workflow_type, s.build_id, 0,
           clock_timestamp() + interval '1 second'
      FROM unnest(?::uuid[], ?::text[], ?::text[], ?::text[], ?::text[])
           AS s(run_id, namespace, task_queue, workflow_type, build_id)
     WHERE s.run_id = {won}
    ON CONFLICT (run_id) DO UPDATE
       SET namespace = excluded.namespace, task_queue = excluded.task_queue,
           workflow_type = excluded.workflow_type, build_id = excluded.build_id, claims = 0,
           next_claim_at = excluded.next_claim_at
)";

    pub(crate) const TASKS_DELETED: &str = ", tasks_deleted AS (
    DELETE FROM tasks t USING unnest(?::uuid[]) AS d(run_id) WHERE t.run_id = d.run_id AND d.run_id = {won}
)";

    pub(crate) const WAKES_SET: &str = ", wakes_set AS (
    INSERT INTO wakes (run_id, seq, created_at)
    SELECT s.run_id, s.seq, clock_timestamp()
      FROM unnest(?::uuid[], ?::bigint[]) AS s(run_id, seq)
     WHERE s.run_id = {won}
    ON CONFLICT DO NOTHING
)";

    /// The last two are the wakes that the same statement sets: those stay.
    pub(crate) const WAKES_DELETED: &str = ", wakes_deleted AS (
    DELETE FROM wakes w USING unnest(?::uuid[], ?::bigint[]) AS d(run_id, seq)
     WHERE w.run_id = d.run_id AND w.seq <= d.seq AND d.run_id = {won}
       AND (SELECT true FROM unnest(?::uuid[], ?::bigint[]) AS s(run_id, seq)
             WHERE s.run_id = w.run_id AND s.seq = w.seq) IS NULL
)";

    pub(crate) const DOUBTS_SET: &str = ", doubts_set AS (
    INSERT INTO doubts (run_id, step_id, attempt, name, policy, since)
    SELECT s.*
      FROM unnest(?::uuid[], ?::bigint[], ?::bigint[], ?::text[], ?::text[], ?::timestamptz[])
           AS s(run_id, step_id, attempt, name, policy, since)
     WHERE s.run_id = {won}
    ON CONFLICT (run_id, step_id) DO UPDATE
       SET attempt = excluded.attempt, name = excluded.name, policy = excluded.policy, since = excluded.since
)";

    /// The last two are the doubts that the same statement sets: those stay.
    pub(crate) const DOUBTS_DELETED: &str = ", doubts_deleted AS (
    DELETE FROM doubts d
     USING unnest(?::uuid[], ?::bigint[]) AS g(run_id, step_id)
     WHERE d.run_id = g.run_id AND (g.step_id IS NULL OR d.step_id = g.step_id) AND g.run_id = {won}
       AND (SELECT true FROM unnest(?::uuid[], ?::bigint[]) AS s(run_id, step_id)
             WHERE s.run_id = d.run_id AND s.step_id = d.step_id) IS NULL
)";
}

/// The answer: database time and the winners.
const ANSWER: &str = "\nSELECT clock_timestamp() AS now, ARRAY(SELECT run_id FROM first) AS winners";

impl Part {
    const fn bit(self) -> u32 {
        1 << match self {
            Self::Lone => 0,
            Self::One => 1,
            Self::First => 2,
            Self::Many => 3,
            Self::Claimed => 4,
            Self::Inserted { later: false, claims: false } => 5,
            Self::Inserted { later: true, claims: false } => 6,
            Self::Inserted { later: false, claims: true } => 7,
            Self::Inserted { later: true, claims: true } => 8,
            Self::Requests => 9,
            Self::Payloads => 10,
            Self::Runs => 11,
            Self::TimersSet => 12,
            Self::TimersDeleted => 13,
            Self::TasksSet => 14,
            Self::TasksDeleted => 15,
            Self::WakesSet => 16,
            Self::WakesDeleted => 17,
            Self::DoubtsSet => 18,
            Self::DoubtsDeleted => 19,
            Self::StepsSet => 20,
            Self::StepsDeleted => 21,
            Self::OutboxSet => 22,
            Self::OutboxDeleted => 23,
            Self::Links => 24,
            Self::AttributesSet => 25,
            Self::AttributesDeleted => 26,
            Self::Answer => 27,
        }
    }

    /// All of them, in order.
    const ALL: [Self; 28] = [
        Self::Lone,
        Self::One,
        Self::First,
        Self::Many,
        Self::Claimed,
        Self::Inserted { later: false, claims: false },
        Self::Inserted { later: true, claims: false },
        Self::Inserted { later: false, claims: true },
        Self::Inserted { later: true, claims: true },
        Self::Requests,
        Self::Payloads,
        Self::Runs,
        Self::TimersSet,
        Self::TimersDeleted,
        Self::TasksSet,
        Self::TasksDeleted,
        Self::WakesSet,
        Self::WakesDeleted,
        Self::DoubtsSet,
        Self::DoubtsDeleted,
        Self::StepsSet,
        Self::StepsDeleted,
        Self::OutboxSet,
        Self::OutboxDeleted,
        Self::Links,
        Self::AttributesSet,
        Self::AttributesDeleted,
        Self::Answer,
    ];

    fn write(self, text: &mut String) {
        text.push_str(match self {
            Self::Lone => LONE,
            Self::One => INPUT_ONE,
            Self::First => INPUT_FIRST,
            Self::Many => INPUT,
            Self::Claimed => CLAIMED,
            Self::Inserted { later, claims } => return text.push_str(&inserted(later, claims)),
            Self::Requests => beside::REQUESTS,
            Self::Payloads => beside::PAYLOADS,
            Self::Runs => beside::RUNS,
            Self::TimersSet => beside::TIMERS_SET,
            Self::TimersDeleted => beside::TIMERS_DELETED,
            Self::TasksSet => beside::TASKS_SET,
            Self::TasksDeleted => beside::TASKS_DELETED,
            Self::WakesSet => beside::WAKES_SET,
            Self::WakesDeleted => beside::WAKES_DELETED,
            Self::DoubtsSet => beside::DOUBTS_SET,
            Self::DoubtsDeleted => beside::DOUBTS_DELETED,
            Self::StepsSet => step_rows::SET,
            Self::StepsDeleted => step_rows::DELETED,
            Self::OutboxSet => between_rows::OUTBOX_SET,
            Self::OutboxDeleted => between_rows::OUTBOX_DELETED,
            Self::Links => between_rows::LINKS,
            Self::AttributesSet => attribute_rows::SET,
            Self::AttributesDeleted => attribute_rows::DELETED,
            Self::Answer => ANSWER,
        });
    }
}

impl Parts {
    pub(crate) fn add(&mut self, part: Part) {
        debug_assert!(self.0 < part.bit(), "{part:?} is out of order");
        self.0 |= part.bit();
    }

    /// The statement for places that may be taken.
    pub(crate) fn carefully(&mut self) {
        self.0 |= CAREFUL;
    }

    /// The statement's text; put together once.
    pub(crate) fn text(self, day: Day) -> SqlStr {
        let known = TEXTS.read().unwrap_or_else(PoisonError::into_inner).get(&(self, day)).cloned();
        let text = known.unwrap_or_else(|| {
            let mut parts = String::new();
            Part::ALL.iter().filter(|part| self.0 & part.bit() != 0).for_each(|part| part.write(&mut parts));
            let ignore = if self.0 & CAREFUL != 0 { IGNORE } else { "" };
            let text: Arc<str> = finish(&parts, day, ignore).into();
            let mut texts = TEXTS.write().unwrap_or_else(PoisonError::into_inner);
            if texts.len() >= TEXTS_MAX {
                texts.clear();
            }
            texts.insert((self, day), Arc::clone(&text));
            text
        });
        // Made of this crate's constants and a number; all else is bound.
        AssertSqlSafe(text).into_sql_str()
    }
}

/// Fills in the tables, and numbers the parameters.
fn finish(parts: &str, day: Day, ignore: &str) -> String {
    let events = day.map_or("events".to_owned(), |day| format!("events_{day:08}"));
    let (mut text, mut number) = (String::with_capacity(parts.len() + 256), 0);
    let mut rest = parts;
    while let Some(at) = rest.find(['?', '{']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{events}") {
            text.push_str(&events);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{columns}") {
            text.push_str(COLUMNS);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{ignore}") {
            text.push_str(ignore);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{won}") {
            text.push_str(WON);
            rest = after;
        } else {
            number += 1;
            text.push_str(&format!("${number}"));
            rest = &rest[1..];
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_in_order() {
        let mut parts = Parts::default();
        for part in [Part::One, Part::Inserted { later: false, claims: false }, Part::Answer] {
            parts.add(part);
        }
        let text = parts.text(Some(20_261_121));
        let text = text.as_str();
        assert!(
            text.contains("$1::uuid AS run_id, $2::bigint AS seq") && text.contains("$14::bytea"),
            "{text}"
        );
        assert!(text.contains("INSERT INTO events_20261121 (run_id"), "{text}");
        assert!(!text.contains(['?', '{', '}']), "{text}");
        assert!(parts.text(None).as_str().contains("INSERT INTO events (run_id"));
        assert!(!text.contains("ON CONFLICT"), "{text}");
        parts.carefully();
        assert!(parts.text(Some(20_261_121)).as_str().contains("ON CONFLICT DO NOTHING"));
    }

    #[test]
    fn parts_stand_in_the_order_of_their_bits() {
        assert!(Part::ALL.iter().zip(0..).all(|(part, n)| part.bit() == 1 << n));
    }
}
