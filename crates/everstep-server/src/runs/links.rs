//! Which runs a run comes from and which one follows it, as it is shown.

use std::collections::BTreeMap;

use everstep_core::RunId;
use everstep_proto::api;
use everstep_proto::wire::encode_link;
use everstep_store::Store;
use tonic::Status;

use crate::status;

/// Adds the links of these runs; most have none.
pub(super) async fn show(store: &dyn Store, mut runs: Vec<api::Run>) -> Result<Vec<api::Run>, Status> {
    let ids: Vec<RunId> = runs.iter().filter_map(|run| run.run_id.parse().ok()).collect();
    let links = store.run_links(&ids).await.map_err(|e| status::of_store(&e))?;
    let links: BTreeMap<String, _> = links.into_iter().map(|(run, link)| (run.to_string(), link)).collect();
    for run in &mut runs {
        if let Some(link) = links.get(&run.run_id) {
            encode_link(run, link);
        }
    }
    Ok(runs)
}
