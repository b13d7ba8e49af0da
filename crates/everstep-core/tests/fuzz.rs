//! Foreign text and numbers against the parsers and the arithmetic of the core: an answer or a refusal,
//! never a panic.

use bolero::{check, produce};
use everstep_core::{
    Duration, Failure, Payload, RetryDecision, RetryPolicy, RunId, RunStatus, RunTrace, TimerKind, Timestamp,
    TraceContext, limits, parse_traceparent, validate_name,
};
use everstep_fuzz::{bent, bytes};

const ITERATIONS: usize = 20_000;
const PARENT: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn traceparents() {
    check!().with_iterations(ITERATIONS).with_generator(bytes(64)).for_each(|input: &Vec<u8>| {
        let traceparent = String::from_utf8_lossy(&bent(PARENT, input)).into_owned();
        let parsed = parse_traceparent(&traceparent);
        if parsed.is_some() {
            let lengths: Vec<usize> = traceparent.split('-').take(4).map(str::len).collect();
            assert_eq!(lengths, [2, 32, 16, 2], "{traceparent}");
        }
        let run = RunId::from_uuid(uuid::Uuid::from_u128(input.len() as u128));
        let context = TraceContext { traceparent, tracestate: String::new() };
        let own = RunTrace::of(run, &context);
        let sampled = parsed.is_some_and(|(_, _, sampled)| sampled);
        assert_eq!(own.parent_span_id.is_some(), sampled);
        // What is handed on can be read.
        assert_eq!(parse_traceparent(&own.traceparent()), Some((own.trace_id, own.run_span_id, true)));
    });
}

#[test]
fn names_ids_and_words() {
    check!().with_iterations(ITERATIONS).with_generator(bytes(300)).for_each(|input: &Vec<u8>| {
        let text = String::from_utf8_lossy(&bent(b"order-1 of team/a", input)).into_owned();
        if validate_name("name", &text).is_ok() {
            assert!((1..=limits::NAME_BYTES_MAX).contains(&text.len()) && text.is_ascii(), "{text:?}");
            assert!(!text.contains("..") && text.trim() == text, "{text:?}");
        }
        let id = String::from_utf8_lossy(&bent(b"01890a5d-ac96-774b-bcce-b302099a8057", input)).into_owned();
        if let Ok(id) = id.parse::<RunId>() {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        if let Some(status) = RunStatus::parse(&text) {
            assert_eq!(status.as_str(), text);
        }
        let _ = TimerKind::parse(&text);
    });
}

#[test]
fn values_as_json() {
    let sample = br#"{"kind":"Io","message":"m","non_retryable":false,"details":{"encoding":"json","data":[49]},"cause":null}"#;
    check!().with_iterations(ITERATIONS).with_generator(bytes(24)).for_each(|input: &Vec<u8>| {
        let bytes = bent(sample, input);
        if let Ok(failure) = serde_json::from_slice::<Failure>(&bytes) {
            let again = serde_json::to_vec(&failure).ok().and_then(|b| serde_json::from_slice(&b).ok());
            assert_eq!(again, Some(failure));
        }
        let _ = serde_json::from_slice::<Payload>(&bytes);
        let _ = serde_json::from_slice::<RetryPolicy>(&bytes);
    });
    // A chain of causes is as deep as the parser allows, and no deeper than the stack.
    let deep = r#"{"kind":"","message":"","non_retryable":false,"cause":"#.repeat(100_000);
    assert!(serde_json::from_str::<Failure>(&deep).is_err());
}

#[test]
fn retries_and_instants() {
    let numbers = produce::<(u64, u64, u64, u32, u64, i64)>();
    check!().with_iterations(ITERATIONS).with_generator(numbers).cloned().for_each(
        |(initial, maximum, coefficient, failures, seed, at)| {
            let policy = RetryPolicy {
                initial_interval: Duration::from_micros(initial >> (seed % 64)),
                maximum_interval: Duration::from_micros(maximum >> (failures % 64)),
                backoff_coefficient: f64::from_bits(coefficient),
                maximum_attempts: 0,
                non_retryable_kinds: Vec::new(),
            };
            let decision = policy.after_failure(failures, &Failure::new("Io", ""), seed);
            let RetryDecision::After(delay) = decision else { return };
            if policy.validate().is_ok() {
                // A float is not exact at this size.
                assert!(delay.as_micros() <= policy.maximum_interval.as_micros().saturating_add(1 << 12));
            }
            let now = Timestamp::from_micros(at);
            assert!(now.after(delay) <= Timestamp::MAX);
            let _ = (now.since(Timestamp::from_micros(at.wrapping_neg())), now.to_string());
        },
    );
}
