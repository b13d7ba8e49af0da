//! Round trips, and what is not taken.

use super::*;

fn queue(name: &str) -> QueueKey {
    QueueKey { namespace: "default".to_owned(), task_queue: name.to_owned() }
}

fn hint(traceparent: &str, tracestate: &str) -> TaskHint {
    TaskHint {
        trace: TraceContext { traceparent: traceparent.to_owned(), tracestate: tracestate.to_owned() },
        ..TaskHint::new(RunId::from_uuid(Uuid::from_u128(7)), HintQueue::runs(queue("q")))
    }
}

fn round_trip(hint: &TaskHint) -> TaskHint {
    let (headers, payload) = encode_hint(hint);
    decode_hint(&hint.place(), Some(&headers), &payload).unwrap()
}

#[test]
fn hints_keep_their_trace_context() {
    let sent = hint("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b,c=d");
    assert_eq!(round_trip(&sent), sent);
    let untraced = hint("", "");
    let (headers, payload) = encode_hint(&untraced);
    assert!(headers.is_empty());
    assert_eq!(decode_hint(&untraced.place(), None, &payload), Ok(untraced));
}

#[test]
fn trace_headers_that_could_harm_are_left_out() {
    assert_eq!(round_trip(&hint("00-1\r\nNats-Rollup: all", "")).trace, TraceContext::default());
    assert_eq!(round_trip(&hint("", "a=b")).trace, TraceContext::default());
    let long = "x".repeat(TRACE_BYTES_MAX + 1);
    assert_eq!(round_trip(&hint("00-1", &long)).trace, hint("00-1", "").trace);
}

#[test]
fn garbage_is_named() {
    let (_, good) = encode_hint(&hint("", ""));
    assert_eq!(decode_hint(&HintQueue::runs(queue("other")), None, &good), Err(Garbage::WrongQueue));
    assert_eq!(decode_hint(&HintQueue::runs(queue("q")), None, &Bytes::new()), Err(Garbage::BadId("run_id")));
    let bytes = Bytes::from_static(&[0xFF; 4]);
    assert!(matches!(decode_hint(&HintQueue::runs(queue("q")), None, &bytes), Err(Garbage::NotProtobuf(_))));
}

#[test]
fn notices_share_a_packet() {
    let notice = |tail, closed| Notice {
        run_id: RunId::from_uuid(Uuid::from_u128(u128::from(tail))),
        tail,
        closed,
        node: NodeId::from_uuid(Uuid::from_u128(9)),
        asked: !closed,
    };
    let sent = [notice(1, false), notice(u64::MAX, true), notice(0, false)];
    let mut packet = BytesMut::new();
    for notice in &sent {
        encode_notice(notice, &mut packet);
    }
    let packet = packet.freeze();
    let mut got = Vec::new();
    decode_notices(packet.clone(), &mut got).unwrap();
    assert_eq!(got, sent);

    got.clear();
    assert!(decode_notices(packet.slice(..packet.len() - 1), &mut got).is_err());
    assert_eq!(got, sent[..2], "what came before the bad one is good");
}

#[test]
fn what_a_hint_needs_goes_along_and_may_be_absent() {
    let (needs, build_id) = ("greet".to_owned(), "green".to_owned());
    let sent = TaskHint { needs, build_id, passes: 3, ..hint("", "") };
    assert_eq!(round_trip(&sent), sent);
    // As nodes sent it that knew nothing of it; those skip these fields as any that they do not know.
    let old = wire::TaskHint {
        needs: String::new(),
        build_id: String::new(),
        passes: 0,
        ..wire::TaskHint::decode(encode_hint(&sent).1).unwrap()
    };
    let old = Bytes::from(old.encode_to_vec());
    assert!(!old.windows(5).any(|w| w == b"greet"));
    assert_eq!(decode_hint(&sent.place(), None, &old), Ok(hint("", "")));
    let long = TaskHint { needs: "x".repeat(limits::NAME_BYTES_MAX + 1), ..hint("", "") };
    assert_eq!(round_trip(&long), hint("", ""), "no code has such a name");
}

#[test]
fn a_step_hint_is_taken_from_its_own_subject_only() {
    let sent = TaskHint { kind: HintKind::Step, ..hint("", "") };
    let (headers, payload) = encode_hint(&sent);
    assert_eq!(decode_hint(&HintQueue::steps(queue("q")), Some(&headers), &payload), Ok(sent));
    let wrong = decode_hint(&HintQueue::runs(queue("q")), Some(&headers), &payload);
    assert_eq!(wrong, Err(Garbage::WrongQueue));
}
