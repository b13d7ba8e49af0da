//! What every store must do, as checks that an adapter runs as its tests.
//!
//! Each check is a plain function over a [`Subject`] and panics where the store falls short. Checks make
//! their own runs, namespaces, queues and sessions, so they can share one database, also with each other;
//! what a global question returns beside a check's own is ignored. [`run_all`] runs every one of them.
//! [`differential`] holds two stores against each other over random operations.

mod admin;
mod appends;
mod attributes;
mod builds;
mod catalog;
mod differential;
mod doubts;
mod inspect;
mod outbox;
mod payloads;
mod races;
mod relay;
mod sample;
mod sessions;
mod starts;
mod steps;
mod successors;
mod sweep;

use std::fmt;
use std::sync::Arc;

use everstep_core::{Duration, Timestamp};

pub use admin::*;
pub use appends::*;
pub use attributes::*;
pub use builds::*;
pub use catalog::*;
pub use differential::differential;
pub use doubts::*;
pub use inspect::*;
pub use outbox::*;
pub use payloads::*;
pub use races::*;
pub use relay::*;
pub use sessions::*;
pub use starts::*;
pub use steps::*;
pub use successors::*;
pub use sweep::*;

use crate::{Error, Store};

/// A store to check, and how its time passes.
#[derive(Clone)]
pub struct Subject {
    /// The store.
    pub store: Arc<dyn Store>,
    advance: Option<Arc<dyn Fn(Duration) + Send + Sync>>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("virtual_time", &self.advance.is_some()).finish_non_exhaustive()
    }
}

impl Subject {
    /// A store whose time passes by itself.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, advance: None }
    }

    /// A store whose time stands still until `advance` is called.
    pub fn with_clock(store: Arc<dyn Store>, advance: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        Self { store, advance: Some(Arc::new(advance)) }
    }

    /// Database time.
    async fn now(&self) -> Timestamp {
        ok(self.store.now().await)
    }

    /// Returns once database time is past `instant`.
    async fn pass(&self, instant: Timestamp) {
        loop {
            let now = self.now().await;
            if now > instant {
                return;
            }
            match &self.advance {
                Some(advance) => advance(Duration::from_micros(instant.since(now).as_micros() + 1)),
                None => tokio::task::yield_now().await,
            }
        }
    }
}

/// Every check in turn, each on a subject of `factory`'s: a new store, or the same one again.
///
/// # Panics
/// When a check fails.
pub async fn run_all<F, S>(factory: F)
where
    F: Fn() -> S,
    S: Future<Output = Subject>,
{
    macro_rules! each {
        ($($check:ident),+ $(,)?) => { $($check(&factory().await).await;)+ };
    }
    each!(
        appends_are_in_order_without_gaps,
        a_taken_seq_is_a_conflict,
        a_missing_predecessor_is_a_conflict,
        a_loser_writes_nothing,
        a_batch_has_a_verdict_each,
        a_committed_append_again_is_a_conflict,
        a_run_twice_in_a_batch_is_a_conflict,
        a_malformed_append_is_refused_alone,
        a_group_is_committed_whole_or_not_at_all,
        an_older_run_row_never_overwrites,
        writes_of_a_run_apply_in_order,
        a_fresh_start_is_committed_and_found,
        a_start_needs_the_run_it_expects,
        a_request_id_starts_once,
        a_workflow_id_twice_in_a_batch_is_a_conflict,
        a_lost_start_leaves_the_claim_alone,
        a_run_and_its_successor_are_one_append,
        a_successor_is_started_with_the_end_or_not_at_all,
        payloads_come_back_byte_for_byte,
        a_long_history_is_read_in_pages,
        pages_are_bounded_by_bytes,
        heads_are_the_first_events_of_each_run,
        every_kind_of_event_comes_back,
        concurrent_appends_have_one_winner_per_seq,
        concurrent_starts_have_one_winner,
        timers_are_claimed_once_and_again_later,
        claims_of_timers_are_renewed,
        late_timers_are_told,
        timers_are_set_again_deleted_and_cleared,
        the_next_timer_is_named,
        tasks_are_claimed_with_growing_pauses,
        tasks_are_claimed_by_queue,
        tasks_are_claimed_by_type_and_build,
        an_impatient_want_need_not_wait,
        a_census_is_taken,
        builds_are_allowed_for_good,
        wakes_are_found_when_stale_and_deleted,
        a_session_is_opened_renewed_moved_and_closed,
        an_expired_session_is_closed_once,
        runs_of_closed_and_unknown_sessions_are_lost,
        owned_runs_are_paged,
        blocked_runs_are_found_by_queue_and_build,
        runs_are_listed_newest_first_by_filter,
        closed_runs_are_told_apart,
        tables_of_a_run_are_shown,
        namespaces_are_made_once_and_listed,
        wake_rows_are_told,
        parked_runs_are_told_apart,
        wake_tables_are_gone_through_in_pages,
        the_backlog_is_told,
        doubts_of_a_run_apply_in_order,
        doubts_are_listed_and_counted,
        attributes_of_a_run_are_replaced,
        runs_are_found_by_each_type_and_operator,
        filters_by_attributes_hold_together,
        a_namespace_keeps_its_settings,
        attributes_are_declared_for_good,
        an_administrative_request_is_carried_out_once,
    );
    run_between(&factory).await;
    run_present(&factory).await;
}

/// The checks of what runs have to hear of each other.
async fn run_between<F, S>(factory: &F)
where
    F: Fn() -> S,
    S: Future<Output = Subject>,
{
    macro_rules! each {
        ($($check:ident),+ $(,)?) => { $($check(&factory().await).await;)+ };
    }
    each!(
        the_outbox_is_claimed_by_whole_runs,
        the_outbox_is_claimed_up_to_a_limit,
        the_outbox_is_claimed_in_bounded_looks,
        the_outbox_is_left_to_who_holds_it,
        a_loser_tells_nobody,
        links_come_back,
        children_are_listed,
    );
}

/// The checks of what is about the present only: who runs a queued step, and questions.
async fn run_present<F, S>(factory: &F)
where
    F: Fn() -> S,
    S: Future<Output = Subject>,
{
    macro_rules! each {
        ($($check:ident),+ $(,)?) => { $($check(&factory().await).await;)+ };
    }
    each!(
        queued_steps_of_a_run_apply_in_order,
        attempts_are_claimed_once_in_order,
        attempts_are_claimed_where_they_fit,
        a_claim_lasts_as_long_as_its_attempt,
        a_claim_is_returned,
        signs_of_life_are_answered_and_kept,
        attempts_of_closed_sessions_are_lost,
        times_of_queued_steps_run_out,
        times_of_running_attempts_run_out,
        attempts_that_wait_are_told,
        running_attempts_of_a_queue_are_limited,
        attempts_of_a_queue_begin_at_a_rate,
        queues_are_shown_and_listed,
        a_queue_knows_who_is_there_and_what_waits,
        queued_steps_are_listed,
        concurrent_claims_share_the_attempts,
        a_deployment_has_a_secret,
        a_large_input_comes_with_its_claim,
        a_question_is_claimed_once_and_again_later,
        a_question_is_answered_once,
        a_late_question_goes,
    );
}

/// The value, or a panic with the error's text.
#[track_caller]
fn ok<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => panic!("the store failed: {e}"),
    }
}
