//! What stands in the column `attrs` of events about queued steps. The rules of `attrs.rs` hold here too.

use std::borrow::Cow;

use everstep_core::{DoubtPolicy, Duration, QueuedOptions};
use serde::{Deserialize, Serialize};

pub(super) use super::attrs_succession::RetryAttrs;

#[derive(Serialize, Deserialize)]
pub(super) struct ScheduledAttrs<'a> {
    queue: Cow<'a, str>,
    #[serde(default = "default_priority", skip_serializing_if = "is_default_priority")]
    priority: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schedule_to_start_us: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_to_close_us: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schedule_to_close_us: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heartbeat_us: Option<Duration>,
    retry: RetryAttrs<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    in_doubt: Option<DoubtPolicy>,
}

fn default_priority() -> u8 {
    QueuedOptions::PRIORITY_DEFAULT
}

fn is_default_priority(priority: &u8) -> bool {
    *priority == QueuedOptions::PRIORITY_DEFAULT
}

impl<'a> From<&'a QueuedOptions> for ScheduledAttrs<'a> {
    fn from(options: &'a QueuedOptions) -> Self {
        let QueuedOptions {
            task_queue,
            priority,
            schedule_to_start,
            start_to_close,
            schedule_to_close,
            heartbeat,
            retry,
            in_doubt,
        } = options;
        Self {
            queue: task_queue.into(),
            priority: *priority,
            schedule_to_start_us: *schedule_to_start,
            start_to_close_us: *start_to_close,
            schedule_to_close_us: *schedule_to_close,
            heartbeat_us: *heartbeat,
            retry: retry.into(),
            in_doubt: *in_doubt,
        }
    }
}

impl From<ScheduledAttrs<'_>> for QueuedOptions {
    fn from(attrs: ScheduledAttrs<'_>) -> Self {
        Self {
            task_queue: attrs.queue.into_owned(),
            priority: attrs.priority,
            schedule_to_start: attrs.schedule_to_start_us,
            start_to_close: attrs.start_to_close_us,
            schedule_to_close: attrs.schedule_to_close_us,
            heartbeat: attrs.heartbeat_us,
            retry: attrs.retry.into(),
            in_doubt: attrs.in_doubt,
        }
    }
}
