//! Builds and waiting runs as the wire has them.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{QueueKey, limits};
use everstep_proto::api;
use everstep_proto::wire::encode_duration;
use everstep_store::{AllowedBuild, Census};

use crate::check::Check;
use crate::reason;

/// What several sessions of one build have, taken together.
#[derive(Default)]
struct Together {
    task_queues: BTreeSet<String>,
    workflow_types: BTreeSet<String>,
    continues: BTreeSet<String>,
    workers: u64,
    /// One of them has every type.
    any_type: bool,
}

/// What is known of a namespace.
pub(super) fn encode(census: &Census, namespace: &str) -> api::ListBuildsResponse {
    let mut builds: BTreeMap<&str, Together> = BTreeMap::new();
    for group in census.serving.iter().filter(|group| group.namespace == namespace) {
        let all = builds.entry(&group.build_id).or_default();
        all.task_queues.extend(group.serves.task_queues.iter().cloned());
        all.workflow_types.extend(group.serves.workflow_types.iter().cloned());
        all.continues.extend(group.serves.continues.iter().cloned());
        all.any_type |= group.serves.workflow_types.is_empty() && !group.serves.task_queues.is_empty();
        all.workers += group.workers;
    }
    for allowed in census.allowed.iter().filter(|allowed| allowed.queue.namespace == namespace) {
        if let Some(all) = builds.get_mut(allowed.build_id.as_str()) {
            all.continues.insert(allowed.continues.clone());
        }
    }
    let build = |(build_id, all): (&str, Together)| api::Build {
        build_id: build_id.to_owned(),
        task_queues: all.task_queues.into_iter().collect(),
        workflow_types: if all.any_type { Vec::new() } else { all.workflow_types.into_iter().collect() },
        workers: u32::try_from(all.workers).unwrap_or(u32::MAX),
        continues: all.continues.into_iter().collect(),
    };
    let unserved = census.unserved().into_iter().filter(|group| group.task.queue.namespace == namespace);
    let waiting = unserved.map(|group| api::WaitingRuns {
        task_queue: group.task.queue.task_queue.clone(),
        workflow_type: group.task.workflow_type.clone(),
        build_id: group.task.build_id.clone(),
        runs: group.runs,
        oldest: Some(encode_duration(group.oldest)),
    });
    api::ListBuildsResponse { waiting: waiting.collect(), builds: builds.into_iter().map(build).collect() }
}

/// Reads what somebody allows.
pub(super) fn allowed(check: &mut Check, request: api::AllowBuildRequest) -> AllowedBuild {
    let api::AllowBuildRequest { namespace, task_queue, build_id, continues, request_id: _, identity: _ } =
        request;
    let namespace = check.name_or_default("namespace", namespace);
    let task_queue = check.name_or_default("task_queue", task_queue);
    let build_id = check.text("build_id", build_id, limits::NAME_BYTES_MAX);
    let continues = check.text("continues", continues, limits::NAME_BYTES_MAX);
    for (field, build) in [("build_id", &build_id), ("continues", &continues)] {
        if build.is_empty() {
            check.refuse(field, reason::INVALID_ARGUMENT, "must be given");
        }
    }
    if build_id == continues && !build_id.is_empty() {
        check.refuse("continues", reason::INVALID_ARGUMENT, "must be another build");
    }
    AllowedBuild { queue: QueueKey { namespace, task_queue }, build_id, continues }
}
