//! A case of random faults from beginning to end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use everstep_checker::{Verdict, Word};

use crate::case::{Case, Options};
use crate::nemesis::{Field, Nemesis, draw};
use crate::topology::StoreKind;

/// Runs a case with faults for `length`, and judges it.
///
/// # Errors
/// When the case cannot be carried out; what the product does wrong is in the verdict.
pub async fn run(options: Options, length: Duration) -> anyhow::Result<Verdict> {
    let seed = options.layout.seed;
    let lease_ms = u64::try_from(options.layout.lease.as_millis())?;
    let case = Case::start(options).await?;
    let topology = Arc::clone(case.topology());
    let field = Field {
        store: topology.layout.store,
        nodes: topology.nodes.len(),
        workers: topology.workers.len(),
        lease_ms,
        clocks: topology.has_clocks(),
    };
    let schedule = draw(seed, &field, length);
    std::fs::write(case.folder().join("schedule.json"), serde_json::to_string_pretty(&schedule)?)?;
    let nemesis = Arc::new(Nemesis::default());
    let striking = async {
        nemesis.run(&topology, &schedule).await;
        Ok(())
    };
    case.unless_stuck(striking).await?;
    for (name, count) in nemesis.counts() {
        for number in 0..count.drawn {
            case.count(&name, number < count.fired);
        }
    }
    for problem in nemesis.problems() {
        case.problem(problem);
    }
    case.finish().await
}

/// How a process that ran a case exits.
#[must_use]
pub const fn exit_code(word: Word) -> u8 {
    match word {
        Word::Pass => 0,
        Word::Fail => 1,
        Word::Invalid => 4,
    }
}

/// Where a case goes that nobody gave a folder.
#[must_use]
pub fn default_folder(store: StoreKind, seed: u64) -> PathBuf {
    PathBuf::from(format!("target/chaos/{}-{seed}", store.as_str()))
}
