//! Two namespaces use the same ids. A test that must fail with a planted bug: that a request id is good for all.

use anyhow::{Context as _, ensure};
use everstep::Client;
use everstep_chaos::case::{Case, Options};
use everstep_chaos::topology::StoreKind;

use crate::support::{LONG, drop_case, layout, passes};

/// Starts under ids that both namespaces use.
const STARTS: u32 = 10;

/// The ids of runs that were the answer to starts in both namespaces.
async fn shared_runs(address: &str) -> anyhow::Result<Vec<String>> {
    let namespaces = ["left", "right"];
    let admin = Client::connect(address)?;
    for name in namespaces {
        admin.create_namespace(name, "").await?;
    }
    let mut shared = Vec::new();
    for n in 0..STARTS {
        let mut ids = Vec::new();
        for name in namespaces {
            let client = Client::connect(address)?.namespace(name);
            let start = client.workflow::<()>("nobody").workflow_id(format!("same/{n}"));
            let run = start.request_id(format!("same-{n}")).start(&()).await?;
            ids.push(run.run_id().context("a run id")?);
        }
        if ids[0] == ids[1] {
            shared.push(ids.swap_remove(0).to_string());
        }
    }
    Ok(shared)
}

async fn case(test: &str, bug: Option<&str>) -> anyhow::Result<(Case, Vec<String>)> {
    let mut layout = layout(test, 151, StoreKind::Sqlite);
    // No worker serves these namespaces: their runs stay open, and the export for the checker leaves them out.
    layout.namespace_of_export = Some("default".to_owned());
    let planted = bug.map(|bug| ("EVERSTEP_PLANTED_BUG".to_owned(), bug.to_owned()));
    layout.server_environment.extend(planted);
    let case = Case::start(Options::of_fault(layout)).await?;
    let address = case.topology().addresses().first().cloned().context("an address")?;
    let shared = shared_runs(&address).await?;
    Ok((case, shared))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_ids_in_two_namespaces_are_two_runs() -> anyhow::Result<()> {
    let (case, shared) = case("namespaces", None).await?;
    ensure!(shared.is_empty(), "in two namespaces at once: {shared:?}");
    let folder = case.folder().to_path_buf();
    case.count("two_namespaces", true);
    case.wait_moved(10, LONG).await?;
    passes(case).await?;
    drop_case(&folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_that_is_good_for_all_namespaces_is_found() -> anyhow::Result<()> {
    let (case, shared) = case("namespaces-planted", Some("request-id-without-namespace")).await?;
    ensure!(!shared.is_empty(), "the bug is planted, and nothing shows it");
    let folder = case.folder().to_path_buf();
    passes(case).await?;
    drop_case(&folder)
}
