//! What anybody may publish, and what a person may write as an address: read or refused, never a panic.

use async_nats::{HeaderMap, HeaderValue};
use bolero::check;
use bytes::{Bytes, BytesMut};
use everstep_core::{NodeId, QueueKey, RunId};
use everstep_dispatch::{HintQueue, Notice, TaskHint};
use everstep_fuzz::{bent, bytes};
use uuid::Uuid;

use crate::address::Address;
use crate::message::{decode_hint, decode_notices, encode_hint, encode_notice};
use crate::subject::{decode_percent, of_queue};

const ITERATIONS: usize = 20_000;

fn queue() -> HintQueue {
    HintQueue::runs(QueueKey { namespace: "default".to_owned(), task_queue: "q".to_owned() })
}

#[test]
fn hints() {
    let run_id = RunId::from_uuid(Uuid::from_u128(7));
    let needs = "work".to_owned();
    let (_, sample) = encode_hint(&TaskHint { needs, passes: 3, ..TaskHint::new(run_id, queue()) });
    check!().with_iterations(ITERATIONS).with_generator((bytes(24), bytes(64))).for_each(
        |(payload, header)| {
            let mut headers = HeaderMap::new();
            let text = String::from_utf8_lossy(header).into_owned();
            for name in ["traceparent", "tracestate"] {
                if let Ok(value) = text.parse::<HeaderValue>() {
                    headers.insert(name, value);
                }
            }
            let payload = Bytes::from(bent(&sample, payload));
            let Ok(hint) = decode_hint(&queue(), Some(&headers), &payload) else { return };
            assert_eq!(hint.place(), queue());
            let (headers, again) = encode_hint(&hint);
            assert_eq!(decode_hint(&queue(), Some(&headers), &again), Ok(hint));
        },
    );
}

#[test]
fn notices() {
    let id = Uuid::from_u128(9);
    let (run_id, node) = (RunId::from_uuid(id), NodeId::from_uuid(id));
    let notice = Notice { run_id, tail: 3, closed: true, node, asked: true };
    let mut sample = BytesMut::new();
    encode_notice(&notice, &mut sample);
    encode_notice(&notice, &mut sample);
    check!().with_iterations(ITERATIONS).with_generator(bytes(24)).for_each(|input: &Vec<u8>| {
        let packet = Bytes::from(bent(&sample, input));
        let mut read = Vec::new();
        let whole = decode_notices(packet.clone(), &mut read);
        // Each takes a byte at least, so that a packet is no lever on memory.
        assert!(read.len() <= packet.len());
        let mut written = BytesMut::new();
        read.iter().for_each(|notice| encode_notice(notice, &mut written));
        let mut again = Vec::new();
        assert_eq!(decode_notices(written.freeze(), &mut again), Ok(()));
        assert_eq!(again, read, "{whole:?}");
    });
}

#[test]
fn names_as_subjects() {
    check!().with_iterations(ITERATIONS).with_generator((bytes(40), bytes(40))).for_each(|(one, two)| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let key = QueueKey { namespace: text(one), task_queue: text(two) };
        let Ok(subject) = of_queue("es", &HintQueue::runs(key.clone())) else { return };
        let tokens: Vec<&str> = subject.split('.').collect();
        let [_, _, namespace, task_queue] = tokens[..] else { panic!("{subject}") };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_%.".contains(&b);
        assert!(subject.bytes().all(plain), "{subject}");
        // Every name is told from every other: it can be read back. A lone `%` is the empty one.
        let back = |token: &str| if token == "%" { Some(String::new()) } else { decode_percent(token) };
        assert_eq!(back(namespace), Some(key.namespace));
        assert_eq!(back(task_queue), Some(key.task_queue));
        let _ = decode_percent(&text(one));
    });
}

#[test]
fn addresses() {
    let sample = b"nats://user:pass%20word@localhost:4222,tls://[::1]:4333";
    check!().with_iterations(ITERATIONS).with_generator(bytes(24)).for_each(|input: &Vec<u8>| {
        let text = String::from_utf8_lossy(&bent(sample, input)).into_owned();
        if let Ok(address) = Address::parse(&text) {
            assert!(!address.servers.is_empty());
            assert!(address.servers.iter().all(|s| s.username().is_none() && s.password().is_none()));
        }
    });
}
