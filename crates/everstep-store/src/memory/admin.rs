//! Namespaces, declared attributes and the request ids of administrative calls.

use std::collections::BTreeMap;

use async_trait::async_trait;
use everstep_core::{AttributeType, RunId, Timestamp};

use super::{MemoryStore, Tables};
use crate::admin::to_declare;
use crate::{
    Admin, AdminRequest, Administered, AttributeFilter, Change, Error, Namespace, NamespaceSettings,
    REQUESTS_KEPT,
};

/// What administrative calls have left beside namespaces.
#[derive(Debug, Default)]
pub(super) struct AdminTables {
    declared: BTreeMap<String, BTreeMap<String, AttributeType>>,
    requests: BTreeMap<(String, &'static str, String), ([u8; 32], Timestamp)>,
}

impl Tables {
    fn administer(
        &mut self,
        change: &Change,
        request: Option<&AdminRequest>,
        now: Timestamp,
    ) -> Administered {
        self.admin.requests.retain(|_, (_, at)| at.after(REQUESTS_KEPT) > now);
        if let Some(AdminRequest { request_id, body_hash }) = request {
            let key = (change.namespace().to_owned(), change.kind(), request_id.clone());
            match self.admin.requests.get(&key) {
                Some((hash, _)) if hash == body_hash => return Administered::Again,
                Some(_) => return Administered::OtherRequest,
                None => {}
            }
        }
        if let Err(refused) = self.change(change, now) {
            return refused;
        }
        if let Some(AdminRequest { request_id, body_hash }) = request {
            let key = (change.namespace().to_owned(), change.kind(), request_id.clone());
            self.admin.requests.insert(key, (*body_hash, now));
        }
        Administered::Done
    }

    fn change(&mut self, change: &Change, now: Timestamp) -> Result<(), Administered> {
        match change {
            Change::CreateNamespace { name, description } => {
                if !self.create_namespace(name, description, now) {
                    return Err(Administered::Exists);
                }
            }
            Change::UpdateNamespace { name, change } => {
                let namespace = self.namespaces.get_mut(name).ok_or(Administered::NoNamespace)?;
                namespace.settings = change.applied(&namespace.settings);
                if let Some(description) = &change.description {
                    namespace.description.clone_from(description);
                }
            }
            Change::AddSearchAttributes { namespace, attributes } => {
                self.known(namespace)?;
                let declared = self.admin.declared.entry(namespace.clone()).or_default();
                let new = to_declare(declared, attributes)?;
                declared.extend(new);
            }
            Change::SetQueueLimits { queue, limits } => {
                self.known(&queue.namespace)?;
                self.steps.set_limits(queue, *limits, now);
            }
            Change::AllowBuild(allowed) => {
                self.known(&allowed.queue.namespace)?;
                self.allowed.insert(allowed.clone());
            }
        }
        Ok(())
    }

    fn known(&self, namespace: &str) -> Result<(), Administered> {
        if self.namespaces.contains_key(namespace) { Ok(()) } else { Err(Administered::NoNamespace) }
    }

    pub(super) fn attributes_match(&self, run: RunId, filters: &[AttributeFilter]) -> bool {
        let none = BTreeMap::new();
        let attributes = self.attributes.get(&run).unwrap_or(&none);
        filters.iter().all(|filter| filter.matches(attributes))
    }

    pub(super) fn create_namespace(&mut self, name: &str, description: &str, created_at: Timestamp) -> bool {
        if self.namespaces.contains_key(name) {
            return false;
        }
        let (name, description) = (name.to_owned(), description.to_owned());
        let settings = NamespaceSettings::default();
        self.namespaces.insert(name.clone(), Namespace { name, description, created_at, settings });
        true
    }
}

#[async_trait]
impl Admin for MemoryStore {
    async fn administer(
        &self,
        change: &Change,
        request: Option<&AdminRequest>,
    ) -> Result<Administered, Error> {
        let now = (self.clock)();
        Ok(self.lock().administer(change, request, now))
    }

    async fn search_attributes(&self, namespace: &str) -> Result<BTreeMap<String, AttributeType>, Error> {
        Ok(self.lock().admin.declared.get(namespace).cloned().unwrap_or_default())
    }
}
