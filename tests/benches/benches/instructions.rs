//! Instructions of the paths that every step takes, counted by valgrind. `cargo xtask gate` compares them
//! with `baseline.txt`. Each path is counted over a run of 1,000 steps, input and clean-up left out.
#![expect(missing_docs, reason = "the harness makes a public module of each of these functions")]

use std::hint::black_box;

use everstep_benches::Script;
use everstep_core::{Event, Run};
use everstep_proto::row::EventRow;
use gungraun::{library_benchmark, library_benchmark_group, main};

fn script() -> Script {
    present(everstep_benches::script())
}

fn history() -> Vec<Event> {
    present(everstep_benches::history())
}

fn rows() -> Vec<EventRow> {
    everstep_benches::encode(&history())
}

/// An input that cannot be made ends the run; the harness has no other way to hear of it.
#[expect(clippy::panic, reason = "a benchmark without its input has no result")]
fn present<T>(input: anyhow::Result<T>) -> T {
    input.unwrap_or_else(|error| panic!("{error:#}"))
}

#[library_benchmark]
#[bench::of_1000(setup = script)]
fn decide_and_apply(script: Script) -> Script {
    present(everstep_benches::decide_all(black_box(script)))
}

#[library_benchmark]
#[bench::of_1000(setup = history)]
fn fold(history: Vec<Event>) -> (Run, Vec<Event>) {
    (present(everstep_benches::fold(black_box(&history))), history)
}

#[library_benchmark]
#[bench::of_1000(setup = history)]
fn encode_row(history: Vec<Event>) -> (Vec<EventRow>, Vec<Event>) {
    (everstep_benches::encode(black_box(&history)), history)
}

#[library_benchmark]
#[bench::of_1000(setup = rows)]
fn decode_row(rows: Vec<EventRow>) -> Vec<Event> {
    present(everstep_benches::decode(black_box(rows)))
}

#[library_benchmark]
#[bench::of_1000(setup = history)]
fn replay(history: Vec<Event>) -> (u64, Vec<Event>) {
    (present(everstep_benches::replay(black_box(&history))), history)
}

library_benchmark_group!(name = paths, benchmarks = [decide_and_apply, fold, encode_row, decode_row, replay]);

main!(library_benchmark_groups = paths);
