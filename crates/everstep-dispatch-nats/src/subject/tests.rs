//! Encoding: readable for plain names, injective for all.

use std::collections::HashSet;

use everstep_core::QueueKey;

use super::*;

fn subject(namespace: &str, queue: &str) -> String {
    let key = QueueKey { namespace: namespace.to_owned(), task_queue: queue.to_owned() };
    of_queue("everstep", &HintQueue::runs(key)).unwrap()
}

#[test]
fn encodes_tokens() {
    let cases = [
        ("default", "orders", "everstep.task.default.orders"),
        ("a.b", "c d", "everstep.task.a%2Eb.c%20d"),
        ("*", ">", "everstep.task.%2A.%3E"),
        ("", "%", "everstep.task.%.%25"),
        ("Team_1", "x-y", "everstep.task.Team_1.x-y"),
        ("ä", "\r\n", "everstep.task.%C3%A4.%0D%0A"),
    ];
    for (namespace, queue, expect) in cases {
        assert_eq!(subject(namespace, queue), expect);
    }
}

#[test]
fn different_queues_have_different_subjects_and_consumers() {
    let names = ["", "%", "%25", "a", "A", "a.b", "a%2Eb", "a%2eb", ".", "b", "a.", ".a", "*", ">"];
    let mut subjects = HashSet::new();
    let mut consumers = HashSet::new();
    for namespace in names {
        for queue in names {
            let subject = subject(namespace, queue);
            assert!(consumers.insert(consumer_of(&subject)));
            assert!(subjects.insert(subject));
            let key = QueueKey { namespace: namespace.to_owned(), task_queue: queue.to_owned() };
            let steps = of_queue("everstep", &HintQueue::steps(key)).unwrap();
            assert!(steps.ends_with(".step") && consumers.insert(consumer_of(&steps)));
            assert!(subjects.insert(steps));
        }
    }
}

#[test]
fn consumer_names_are_short_and_plain() {
    let name = consumer_of(&subject(&"ü".repeat(120), &".".repeat(255)));
    assert_eq!(name.len(), 38);
    assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{name}");
}

#[test]
fn refuses_names_beyond_the_protocol_line() {
    let key = QueueKey { namespace: ".".repeat(2_000), task_queue: "q".to_owned() };
    let Err(Error::Refused(message)) = of_queue("everstep", &HintQueue::steps(key)) else {
        panic!("it was taken")
    };
    assert!(message.contains("3000 are allowed"), "{message}");
}

#[test]
fn decodes_percent() {
    assert_eq!(decode_percent("a%40b%2fc"), Some("a@b/c".to_owned()));
    assert_eq!(decode_percent("100%"), Some("100%".to_owned()));
    assert_eq!(decode_percent("%zz%4"), Some("%zz%4".to_owned()));
    assert_eq!(decode_percent("%FF"), None);
}
