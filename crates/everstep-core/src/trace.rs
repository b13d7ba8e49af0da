//! Trace ids that follow from the run, so that every process which touches it derives the same ones.

use sha2::{Digest, Sha256};

use crate::{RunId, TraceContext};

/// Where a run's spans hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunTrace {
    /// The caller's trace when it sent a valid, sampled `traceparent`; else derived from the run id.
    pub trace_id: [u8; 16],
    /// The span of the run itself: the same on every node, emitted once.
    pub run_span_id: [u8; 8],
    /// The caller's span, when the trace is the caller's.
    pub parent_span_id: Option<[u8; 8]>,
}

impl RunTrace {
    /// Derives a run's trace from its id and the context stored in its first event.
    pub fn of(run: RunId, context: &TraceContext) -> Self {
        let digest = Sha256::digest(run.as_bytes());
        let run_span_id = first_nonzero::<8>(&digest);
        match parse_traceparent(&context.traceparent) {
            Some((trace_id, parent, true)) => Self { trace_id, run_span_id, parent_span_id: Some(parent) },
            _ => Self {
                trace_id: first_nonzero::<16>(&Sha256::digest(digest)),
                run_span_id,
                parent_span_id: None,
            },
        }
    }

    /// The `traceparent` of the run's own span.
    pub fn traceparent(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        format!("00-{}-{}-01", hex(&self.trace_id), hex(&self.run_span_id))
    }
}

impl TraceContext {
    /// What work for `run` carries: the run's own span, below which everything that is done for it hangs.
    pub fn of_run(&self, run: RunId) -> Self {
        let trace = RunTrace::of(run, self);
        // The caller's additions belong to the caller's trace.
        let tracestate = if trace.parent_span_id.is_some() { self.tracestate.clone() } else { String::new() };
        Self { traceparent: trace.traceparent(), tracestate }
    }
}

/// The parts of a W3C `traceparent` header: trace id, span id, sampled. `None` when it is malformed.
pub fn parse_traceparent(text: &str) -> Option<([u8; 16], [u8; 8], bool)> {
    let mut parts = text.split('-');
    let version = hex::<1>(parts.next()?)?;
    let trace = hex::<16>(parts.next()?)?;
    let span = hex::<8>(parts.next()?)?;
    let flags = hex::<1>(parts.next()?)?;
    let extra = parts.next().is_some();
    let bad = version[0] == 0xff || (version[0] == 0 && extra) || trace == [0; 16] || span == [0; 8];
    (!bad).then_some((trace, span, flags[0] & 1 == 1))
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = text.as_bytes();
    if bytes.len() != 2 * N {
        return None;
    }
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (slot, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *slot = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// The first `N` bytes that are not all zero, which is not a valid id.
fn first_nonzero<const N: usize>(digest: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    for chunk in digest.chunks_exact(N) {
        out.copy_from_slice(chunk);
        if out != [0; N] {
            return out;
        }
    }
    out[N - 1] = 1;
    out
}
