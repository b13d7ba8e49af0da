//! What stands in the column `attrs`, kind by kind. These shapes are stored for ever: fields may be added
//! with a default, never renamed, never given another meaning. Instants and durations are microseconds.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use everstep_core::{
    BlockKind, Blocked, DetachReason, DoubtPolicy, Duration, Failure, Origin, ParentLink, Payload,
    Resolution, RetryPolicy, RunId, RunStarted, Seq, SessionId, StepResolved, TimerKey, TimerKind, Timestamp,
    TraceContext,
};
use serde::{Deserialize, Serialize};

use super::attrs_notes::{self, AttributesAttrs, MemoAttrs};
use super::attrs_runs::ParentAttrs;
use super::attrs_succession::{HeardAttrs, RetryAttrs, is_zero};

pub(super) type Text<'a> = Cow<'a, str>;

fn is_false(flag: &bool) -> bool {
    !*flag
}

#[derive(Serialize, Deserialize)]
pub(super) struct Started<'a> {
    namespace: Text<'a>,
    workflow_id: Text<'a>,
    workflow_type: Text<'a>,
    task_queue: Text<'a>,
    request_id: Text<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run_timeout_us: Option<Duration>,
    seed: u64,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    traceparent: Text<'a>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    tracestate: Text<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_at_us: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry: Option<RetryAttrs<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<ParentAttrs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<RunId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first: Option<RunId>,
    #[serde(default, skip_serializing_if = "is_zero")]
    run_attempt: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    heard: Vec<HeardAttrs<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step_retry: Option<RetryAttrs<'a>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    attributes: AttributesAttrs<'a>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    memo: MemoAttrs<'a>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Attached<'a> {
    pub(super) session: SessionId,
    pub(super) identity: Text<'a>,
    pub(super) build_id: Text<'a>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) pinned: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Detached<'a> {
    reason: DetachWord,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    message: Text<'a>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DetachWord {
    Parked,
    Released,
    Lost,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Elapsed {
    pub(super) elapsed_us: Duration,
}

#[derive(Serialize, Deserialize)]
pub(super) struct StepStartedAttrs {
    #[serde(default)]
    pub(super) in_doubt: Option<DoubtPolicy>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ResolvedAttrs<'a> {
    resolution: ResolutionWord,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<FailureAttrs<'a>>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    note: Text<'a>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ResolutionWord {
    Completed,
    Failed,
    Retry,
}

#[derive(Serialize, Deserialize)]
pub(super) struct StepFailedAttrs<'a> {
    pub(super) elapsed_us: Duration,
    pub(super) failure: FailureAttrs<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) retry_at_us: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Failed<'a> {
    pub(super) failure: FailureAttrs<'a>,
    #[serde(default, skip_serializing_if = "<[Seq]>::is_empty")]
    pub(super) unconsumed: Cow<'a, [Seq]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) retried_by: Option<RunId>,
}

/// A failure without its own details, which are the event's payload.
#[derive(Serialize, Deserialize)]
pub(super) struct FailureAttrs<'a> {
    kind: Text<'a>,
    message: Text<'a>,
    #[serde(default, skip_serializing_if = "is_false")]
    non_retryable: bool,
    /// From the nearest cause to the farthest: a list, so that no depth of causes upsets a JSON parser.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    causes: Vec<CauseAttrs<'a>>,
}

#[derive(Serialize, Deserialize)]
struct CauseAttrs<'a> {
    kind: Text<'a>,
    message: Text<'a>,
    #[serde(default, skip_serializing_if = "is_false")]
    non_retryable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<DetailsAttrs<'a>>,
}

/// A cause's payload: as text where it is UTF-8, else in hexadecimal.
#[derive(Serialize, Deserialize)]
pub(super) struct DetailsAttrs<'a> {
    encoding: Text<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<Hex>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct TimerAttrs {
    pub(super) fire_at_us: Timestamp,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Fired {
    pub(super) timer_kind: TimerWord,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TimerWord {
    Timer,
    Retry,
    RunTimeout,
    Start,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Signal<'a> {
    pub(super) signal_id: Text<'a>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct CancelAsked<'a> {
    pub(super) reason: Text<'a>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Marked {
    pub(super) version: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct BlockedAttrs<'a> {
    kind: BlockWord,
    at_seq: Seq,
    expected: Text<'a>,
    produced: Text<'a>,
    source: Text<'a>,
    hint: Text<'a>,
    build_id: Text<'a>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BlockWord {
    Nondeterminism,
    ForeignWake,
    Poison,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Unblocked<'a> {
    pub(super) build_id: Text<'a>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Unconsumed<'a> {
    #[serde(default)]
    pub(super) unconsumed: Cow<'a, [Seq]>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct CanceledAttrs<'a> {
    pub(super) details: Text<'a>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Terminated<'a> {
    pub(super) reason: Text<'a>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct IgnoredAttrs {
    #[serde(default)]
    pub(super) may_ignore: bool,
}

impl<'a> From<&'a RunStarted> for Started<'a> {
    fn from(s: &'a RunStarted) -> Self {
        // Destructured, so that a new field cannot be forgotten here.
        let RunStarted {
            namespace,
            workflow_id,
            workflow_type,
            task_queue,
            input: _,
            request_id,
            run_timeout,
            seed,
            trace: TraceContext { traceparent, tracestate },
            start_at,
            retry,
            origin: Origin { parent, previous, first, attempt, heard },
            step_retry,
            notes,
        } = s;
        let (attributes, memo) = attrs_notes::encode(notes);
        Self {
            namespace: namespace.into(),
            workflow_id: workflow_id.into(),
            workflow_type: workflow_type.into(),
            task_queue: task_queue.into(),
            request_id: request_id.into(),
            run_timeout_us: *run_timeout,
            seed: *seed,
            traceparent: traceparent.into(),
            tracestate: tracestate.into(),
            start_at_us: *start_at,
            retry: retry.as_ref().map(RetryAttrs::from),
            parent: parent.as_ref().map(ParentAttrs::from),
            previous: *previous,
            first: *first,
            run_attempt: *attempt,
            heard: heard.iter().map(HeardAttrs::from).collect(),
            step_retry: step_retry.as_ref().map(RetryAttrs::from),
            attributes,
            memo,
        }
    }
}

impl From<Started<'_>> for RunStarted {
    /// Without the input, which is the event's payload.
    fn from(s: Started<'_>) -> Self {
        Self {
            namespace: s.namespace.into_owned(),
            workflow_id: s.workflow_id.into_owned(),
            workflow_type: s.workflow_type.into_owned(),
            task_queue: s.task_queue.into_owned(),
            input: Payload::default(),
            request_id: s.request_id.into_owned(),
            run_timeout: s.run_timeout_us,
            seed: s.seed,
            trace: TraceContext {
                traceparent: s.traceparent.into_owned(),
                tracestate: s.tracestate.into_owned(),
            },
            start_at: s.start_at_us,
            retry: s.retry.map(RetryPolicy::from),
            origin: Origin {
                parent: s.parent.map(ParentLink::from),
                previous: s.previous,
                first: s.first,
                attempt: s.run_attempt,
                heard: s.heard.into_iter().map(HeardAttrs::heard).collect(),
            },
            step_retry: s.step_retry.map(RetryPolicy::from),
            notes: attrs_notes::decode(s.attributes, s.memo),
        }
    }
}

impl<'a> From<&'a DetachReason> for Detached<'a> {
    fn from(reason: &'a DetachReason) -> Self {
        let (reason, message) = match reason {
            DetachReason::Parked => (DetachWord::Parked, ""),
            DetachReason::Released(message) => (DetachWord::Released, message.as_str()),
            DetachReason::Lost => (DetachWord::Lost, ""),
        };
        Self { reason, message: message.into() }
    }
}

impl From<Detached<'_>> for DetachReason {
    fn from(d: Detached<'_>) -> Self {
        match d.reason {
            DetachWord::Parked => Self::Parked,
            DetachWord::Released => Self::Released(d.message.into_owned()),
            DetachWord::Lost => Self::Lost,
        }
    }
}

impl<'a> From<&'a StepResolved> for ResolvedAttrs<'a> {
    fn from(resolved: &'a StepResolved) -> Self {
        let StepResolved { step: _, name: _, attempt: _, resolution, note } = resolved;
        let (resolution, failure) = match resolution {
            Resolution::Completed(_) => (ResolutionWord::Completed, None),
            Resolution::Failed(failure) => (ResolutionWord::Failed, Some(failure.into())),
            Resolution::Retry => (ResolutionWord::Retry, None),
        };
        Self { resolution, failure, note: note.into() }
    }
}

impl ResolvedAttrs<'_> {
    /// What was said, with the event's payload as its result or details; and the note.
    pub(super) fn resolution(self, payload: Payload) -> Option<(Resolution, String)> {
        let resolution = match self.resolution {
            ResolutionWord::Completed => Resolution::Completed(payload),
            ResolutionWord::Failed => Resolution::Failed(self.failure?.with_details(payload)),
            ResolutionWord::Retry => Resolution::Retry,
        };
        Some((resolution, self.note.into_owned()))
    }
}

impl<'a> From<&'a Failure> for FailureAttrs<'a> {
    fn from(failure: &'a Failure) -> Self {
        let Failure { kind, message, non_retryable, details: _, cause } = failure;
        let causes = std::iter::successors(cause.as_deref(), |f| f.cause.as_deref());
        Self {
            kind: kind.into(),
            message: message.into(),
            non_retryable: *non_retryable,
            causes: causes.map(CauseAttrs::from).collect(),
        }
    }
}

impl FailureAttrs<'_> {
    /// The failure, with the event's payload as its details.
    pub(super) fn with_details(self, details: Payload) -> Failure {
        let cause =
            self.causes.into_iter().rev().fold(None, |cause, attrs| Some(Box::new(attrs.failure(cause))));
        Failure {
            kind: self.kind.into_owned(),
            message: self.message.into_owned(),
            non_retryable: self.non_retryable,
            details,
            cause,
        }
    }
}

impl<'a> From<&'a Failure> for CauseAttrs<'a> {
    fn from(failure: &'a Failure) -> Self {
        let Failure { kind, message, non_retryable, details, cause: _ } = failure;
        Self {
            kind: kind.into(),
            message: message.into(),
            non_retryable: *non_retryable,
            details: (!details.is_none()).then(|| DetailsAttrs::from(details)),
        }
    }
}

impl CauseAttrs<'_> {
    fn failure(self, cause: Option<Box<Failure>>) -> Failure {
        Failure {
            kind: self.kind.into_owned(),
            message: self.message.into_owned(),
            non_retryable: self.non_retryable,
            details: self.details.map(Payload::from).unwrap_or_default(),
            cause,
        }
    }
}

impl<'a> From<&'a Payload> for DetailsAttrs<'a> {
    fn from(payload: &'a Payload) -> Self {
        let encoding = Cow::from(&payload.encoding);
        match std::str::from_utf8(&payload.data) {
            Ok(text) => Self { encoding, text: Some(text.into()), hex: None },
            Err(_) => Self { encoding, text: None, hex: Some(Hex(payload.data.clone())) },
        }
    }
}

impl From<DetailsAttrs<'_>> for Payload {
    fn from(details: DetailsAttrs<'_>) -> Self {
        let data = match (details.text, details.hex) {
            (Some(text), _) => Bytes::from(text.into_owned().into_bytes()),
            (None, Some(Hex(bytes))) => bytes,
            (None, None) => Bytes::new(),
        };
        Self { encoding: details.encoding.into_owned(), data }
    }
}

/// Bytes as a string of hexadecimal digits.
#[derive(Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Hex(Bytes);

// `serde(into)` serializes a clone.
impl Clone for Hex {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl From<Hex> for String {
    fn from(hex: Hex) -> Self {
        hex.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits: Option<Vec<u8>> =
            text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
        match digits {
            Some(digits) if digits.len() % 2 == 0 => {
                Ok(Self(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()))
            }
            _ => Err("not an even number of hexadecimal digits".to_owned()),
        }
    }
}

impl From<TimerKind> for TimerWord {
    fn from(kind: TimerKind) -> Self {
        match kind {
            TimerKind::Timer => Self::Timer,
            TimerKind::Retry => Self::Retry,
            TimerKind::RunTimeout => Self::RunTimeout,
            TimerKind::Start => Self::Start,
        }
    }
}

impl TimerWord {
    pub(super) fn key(self, id: u32) -> TimerKey {
        let kind = match self {
            Self::Timer => TimerKind::Timer,
            Self::Retry => TimerKind::Retry,
            Self::RunTimeout => TimerKind::RunTimeout,
            Self::Start => TimerKind::Start,
        };
        TimerKey { kind, id }
    }
}

impl<'a> From<&'a Blocked> for BlockedAttrs<'a> {
    fn from(blocked: &'a Blocked) -> Self {
        let Blocked { kind, at_seq, expected, produced, source, hint, build_id } = blocked;
        Self {
            kind: match kind {
                BlockKind::Nondeterminism => BlockWord::Nondeterminism,
                BlockKind::ForeignWake => BlockWord::ForeignWake,
                BlockKind::Poison => BlockWord::Poison,
            },
            at_seq: *at_seq,
            expected: expected.into(),
            produced: produced.into(),
            source: source.into(),
            hint: hint.into(),
            build_id: build_id.into(),
        }
    }
}

impl From<BlockedAttrs<'_>> for Blocked {
    fn from(b: BlockedAttrs<'_>) -> Self {
        Self {
            kind: match b.kind {
                BlockWord::Nondeterminism => BlockKind::Nondeterminism,
                BlockWord::ForeignWake => BlockKind::ForeignWake,
                BlockWord::Poison => BlockKind::Poison,
            },
            at_seq: b.at_seq,
            expected: b.expected.into_owned(),
            produced: b.produced.into_owned(),
            source: b.source.into_owned(),
            hint: b.hint.into_owned(),
            build_id: b.build_id.into_owned(),
        }
    }
}
