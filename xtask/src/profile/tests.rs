//! Arguments, and perf's text as folded stacks.

use super::*;

fn parse(words: &str) -> anyhow::Result<Options> {
    Options::parse(&words.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>())
}

#[test]
fn a_workload_is_named_and_known() -> anyhow::Result<()> {
    let options = parse("w1 --store postgres://x/y --concurrency 8")?;
    assert_eq!((options.store.as_deref(), options.concurrency), (Some("postgres://x/y"), 8));
    assert_eq!(parse("fan-out --store sqlite")?.store, None);
    assert_eq!((parse("w1")?.concurrency, parse("fan-out")?.concurrency), (64, 8));
    for wrong in
        ["", "w9", "w1 w2", "w1 --concurrency", "w1 --concurrency many", "w2 --concurrency 2", "--store w1"]
    {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    Ok(())
}

#[test]
fn processes_are_told_apart_by_their_arguments() {
    assert_eq!(role("/x/everstep\0server\0--listen\0"), Some("server"));
    assert_eq!(role("/x/everstep\0bench\0--worker-of\0http://x\0"), Some("worker"));
    assert_eq!(role("/x/everstep\0bench\0--repeat\x001\0"), None);
    assert_eq!(role("sleep\x001\0"), None);
}

#[test]
fn stacks_are_folded_by_role_without_addresses_and_hashes() {
    let script = "tokio rt 7 \n\t55d0 core::poll::h0123456789abcdef\n\t55d1 main\n\n\
                  tokio rt 7 \n\t66d0 core::poll::h0123456789abcdef\n\t55d1 main\n\n\
                  other 9 \n\t55d1 main\n\n";
    let stacks = fold(script, &BTreeMap::from([(7, "server")]));
    assert_eq!(stacks, BTreeMap::from([("server;tokio_rt;main;core::poll".to_owned(), 2)]));
    assert_eq!(frame("  7f00 [unknown]"), "[unknown]");
    assert_eq!(frame("  7f00 a::handle"), "a::handle");
}
