//! The port for those who run Everstep: changes of namespaces and queues, each made once for its request id.

use std::collections::BTreeMap;

use async_trait::async_trait;
use everstep_core::{AttributeType, Duration, QueueKey, RetryPolicy, limits};
use serde::{Deserialize, Serialize};

use crate::{AllowedBuild, Error, QueueLimits};

/// How long a request id is remembered.
pub const REQUESTS_KEPT: Duration = Duration::from_secs(24 * 3_600);

/// Administrative changes, and what they change.
#[async_trait]
pub trait Admin: Send + Sync + 'static {
    /// Makes a change, and notes its request in the same transaction: a request that was noted before, and less
    /// than [`REQUESTS_KEPT`] ago, is not carried out again. What is refused is not noted.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::OutcomeUnknown`].
    async fn administer(
        &self,
        change: &Change,
        request: Option<&AdminRequest>,
    ) -> Result<Administered, Error>;

    /// The search attributes that a namespace declares, by name.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn search_attributes(&self, namespace: &str) -> Result<BTreeMap<String, AttributeType>, Error>;
}

/// A change.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Make a namespace.
    CreateNamespace {
        /// Its name.
        name: String,
        /// For people; may be empty.
        description: String,
    },
    /// Change what a namespace sets.
    UpdateNamespace {
        /// Which.
        name: String,
        /// What.
        change: NamespaceChange,
    },
    /// Declare search attributes; those that are declared already stay as they are.
    AddSearchAttributes {
        /// In this namespace.
        namespace: String,
        /// By name.
        attributes: BTreeMap<String, AttributeType>,
    },
    /// Set what a queue's steps may do.
    SetQueueLimits {
        /// Which queue.
        queue: QueueKey,
        /// What its steps may do.
        limits: QueueLimits,
    },
    /// Let a build go on with the runs of another.
    AllowBuild(AllowedBuild),
}

impl Change {
    /// The namespace that it is about.
    pub fn namespace(&self) -> &str {
        match self {
            Self::CreateNamespace { name, .. } | Self::UpdateNamespace { name, .. } => name,
            Self::AddSearchAttributes { namespace, .. } => namespace,
            Self::SetQueueLimits { queue, .. } => &queue.namespace,
            Self::AllowBuild(allowed) => &allowed.queue.namespace,
        }
    }

    /// A stable word for its kind: request ids of different kinds have nothing to do with each other.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::CreateNamespace { .. } => "create_namespace",
            Self::UpdateNamespace { .. } => "update_namespace",
            Self::AddSearchAttributes { .. } => "add_search_attributes",
            Self::SetQueueLimits { .. } => "set_queue_limits",
            Self::AllowBuild(_) => "allow_build",
        }
    }
}

/// The request behind a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminRequest {
    /// The caller's id of it.
    pub request_id: String,
    /// Hash of what it asks for.
    pub body_hash: [u8; 32],
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Administered {
    /// It is made.
    Done,
    /// It was made before, for the same request.
    Again,
    /// The request id was used for something else.
    OtherRequest,
    /// The namespace to make is there already.
    Exists,
    /// There is no such namespace.
    NoNamespace,
    /// An attribute is declared with another type.
    OtherType {
        /// Which.
        name: String,
        /// The type that it has.
        declared: AttributeType,
    },
    /// The namespace would declare more attributes than it may.
    TooMany {
        /// How many.
        actual: usize,
    },
}

/// What runs of a namespace get where request and code are silent. Stored as JSON, for ever: fields may be added
/// with a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceSettings {
    /// The policy of their steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_retry: Option<RetryPolicy>,
    /// Their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_retry: Option<RetryPolicy>,
    /// Their longest life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_timeout: Option<Duration>,
}

impl NamespaceSettings {
    /// As they are stored.
    pub fn to_text(&self) -> String {
        // Numbers that are not finite are refused before they come here, and are stored as nothing.
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }

    /// Those that are stored of a namespace.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn from_text(namespace: &str, text: &str) -> Result<Self, Error> {
        serde_json::from_str(text)
            .map_err(|e| Error::Corrupt(format!("the settings of namespace {namespace} cannot be read: {e}")))
    }
}

/// A change of a namespace: what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceChange {
    /// For people.
    pub description: Option<String>,
    /// The policy of steps; `Some(None)` takes it away, as with the others.
    pub step_retry: Option<Option<RetryPolicy>>,
    /// That of runs.
    pub run_retry: Option<Option<RetryPolicy>>,
    /// The longest life of runs.
    pub run_timeout: Option<Option<Duration>>,
}

impl NamespaceChange {
    /// The settings after it.
    pub fn applied(&self, before: &NamespaceSettings) -> NamespaceSettings {
        let Self { description: _, step_retry, run_retry, run_timeout } = self;
        let NamespaceSettings { step_retry: steps, run_retry: runs, run_timeout: life } = before;
        NamespaceSettings {
            step_retry: step_retry.as_ref().unwrap_or(steps).clone(),
            run_retry: run_retry.as_ref().unwrap_or(runs).clone(),
            run_timeout: run_timeout.unwrap_or(*life),
        }
    }
}

/// Which of `wanted` a namespace that declares `declared` does not have yet.
///
/// # Errors
/// What the change comes to when it cannot be made.
pub fn to_declare(
    declared: &BTreeMap<String, AttributeType>,
    wanted: &BTreeMap<String, AttributeType>,
) -> Result<BTreeMap<String, AttributeType>, Administered> {
    let mut new = BTreeMap::new();
    for (name, kind) in wanted {
        match declared.get(name) {
            Some(known) if known == kind => {}
            Some(known) => return Err(Administered::OtherType { name: name.clone(), declared: *known }),
            None => drop(new.insert(name.clone(), *kind)),
        }
    }
    let actual = declared.len() + new.len();
    if actual > limits::DECLARED_ATTRIBUTES_MAX {
        return Err(Administered::TooMany { actual });
    }
    Ok(new)
}
