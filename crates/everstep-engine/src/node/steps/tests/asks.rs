//! How much a worker is asked at one time.

use super::*;

/// So many claims of the worker's session that nobody here knows of.
fn claims(bench: &Bench, count: u32) -> Vec<ClaimRow> {
    (1..=count).map(|step| bench.row(key(step, 2), 0, false)).collect()
}

fn asks(bench: &mut Bench) -> usize {
    bench.wants().iter().filter(|want| want.starts_with("ask ")).count()
}

#[test]
fn a_worker_that_comes_back_is_asked_for_so_many_attempts_at_a_time() {
    let mut bench = Bench::new();
    bench.connect(Some(SessionId::from_uuid(Uuid::from_u128(3))), Vec::new());
    bench.wants();
    let rows = claims(&bench, 1_500);
    bench.found(rows);
    assert_eq!(asks(&mut bench), 1_000);
}

#[test]
fn each_look_asks_a_worker_for_so_many_attempts() {
    let mut bench = Bench::with_worker();
    bench.wants();
    bench.now = bench.now.after(Duration::from_secs(10));
    for _look in 0..2 {
        let rows = claims(&bench, 1_500);
        bench.found(rows);
        assert_eq!(asks(&mut bench), 1_000);
    }
    let rows = claims(&bench, 500);
    bench.found(rows);
    assert_eq!(asks(&mut bench), 500, "what was answered is asked no more");
}
