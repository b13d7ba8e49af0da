//! What is read from, and written to, the headers.

use super::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn headers(pairs: &[(&'static str, &str)]) -> MetadataMap {
    let mut map = MetadataMap::new();
    for (name, value) in pairs {
        map.append(*name, value.parse().unwrap());
    }
    map
}

#[test]
fn a_context_survives_the_headers() {
    let context = TraceContext { traceparent: PARENT.to_owned(), tracestate: "a=1,b=2".to_owned() };
    let mut map = MetadataMap::new();
    inject(&context, &mut map);
    assert_eq!(extract(&map), context);
    assert_eq!(
        extract(&headers(&[(TRACEPARENT, PARENT), (TRACESTATE, "a=1"), (TRACESTATE, "b=2")])),
        context
    );
}

#[test]
fn what_is_malformed_counts_as_absent() {
    let zeros = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
    let upper = PARENT.to_uppercase();
    let long = format!("cc-{}", &PARENT[3..]) + "-" + &"x".repeat(300);
    for bad in ["", "garbage", zeros, &upper, &PARENT[..54], &format!("{PARENT}-x"), &long] {
        assert_eq!(extract(&headers(&[(TRACEPARENT, bad)])), TraceContext::default(), "{bad}");
        let mut map = MetadataMap::new();
        inject(&TraceContext { traceparent: bad.to_owned(), tracestate: "a=1".to_owned() }, &mut map);
        assert!(map.is_empty(), "{bad}");
    }
    assert_eq!(extract(&headers(&[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT)])), TraceContext::default());
    assert_eq!(extract(&MetadataMap::new()), TraceContext::default());
}

#[test]
fn a_long_tracestate_is_dropped_alone() {
    let long = format!("a={}", "x".repeat(600));
    let read = extract(&headers(&[(TRACEPARENT, PARENT), (TRACESTATE, &long)]));
    assert_eq!(read, TraceContext { traceparent: PARENT.to_owned(), tracestate: String::new() });
}
