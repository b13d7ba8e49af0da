//! `NamespaceService`.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::limits;
use everstep_engine::Engine;
use everstep_proto::api::{self, namespace_service_server::NamespaceService};
use everstep_proto::wire::{
    decode_attribute_type, encode_attribute_type, encode_duration, encode_recorded_policy, encode_timestamp,
};
use everstep_store::{Change, Namespace, NamespaceChange, NamespaceSettings};
use tonic::{Request, Response, Status};

use crate::check::Check;
use crate::{administer, page, reason, status};

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct NamespaceApi {
    pub(crate) engine: Engine,
}

impl NamespaceApi {
    async fn find(&self, name: &str) -> Result<Namespace, Status> {
        let found = self.engine.store().get_namespace(name).await.map_err(|e| status::of_store(&e))?;
        found.ok_or_else(|| status::namespace_not_found(name))
    }

    async fn declared(&self, name: &str) -> Result<BTreeMap<String, i32>, Status> {
        let found = self.engine.store().search_attributes(name).await.map_err(|e| status::of_store(&e))?;
        if found.is_empty() {
            self.find(name).await?;
        }
        Ok(found.into_iter().map(|(name, kind)| (name, encode_attribute_type(kind).into())).collect())
    }
}

#[tonic::async_trait]
impl NamespaceService for NamespaceApi {
    async fn create_namespace(
        &self,
        request: Request<api::CreateNamespaceRequest>,
    ) -> Result<Response<api::CreateNamespaceResponse>, Status> {
        let mut wire = request.into_inner();
        let mut check = Check::default();
        let request_id = check.request_id(std::mem::take(&mut wire.request_id));
        let request = administer::request(&request_id, &wire);
        let api::CreateNamespaceRequest { name, description, request_id: _ } = wire;
        let name = check.name("name", name);
        let description = check.text("description", description, limits::MESSAGE_BYTES_MAX);
        check.finish()?;
        let change = Change::CreateNamespace { name: name.clone(), description };
        administer::make(&self.engine, change, request).await?;
        let namespace = self.find(&name).await?;
        Ok(Response::new(api::CreateNamespaceResponse { namespace: Some(encode(namespace)) }))
    }

    async fn get_namespace(
        &self,
        request: Request<api::GetNamespaceRequest>,
    ) -> Result<Response<api::GetNamespaceResponse>, Status> {
        let api::GetNamespaceRequest { name } = request.into_inner();
        let mut check = Check::default();
        let name = check.name("name", name);
        check.finish()?;
        let namespace = self.find(&name).await?;
        Ok(Response::new(api::GetNamespaceResponse { namespace: Some(encode(namespace)) }))
    }

    async fn list_namespaces(
        &self,
        request: Request<api::ListNamespacesRequest>,
    ) -> Result<Response<api::ListNamespacesResponse>, Status> {
        let api::ListNamespacesRequest { page_size, page_token } = request.into_inner();
        let mut check = Check::default();
        let size = check.page_size(page_size);
        check.finish()?;
        let after = page::namespaces_page(&page_token)?;
        let store = self.engine.store();
        // One more than asked for tells whether there is another page.
        let mut found = store.list_namespaces(&after, size + 1).await.map_err(|e| status::of_store(&e))?;
        let more = found.len() > size;
        found.truncate(size);
        let next_page_token = match found.last() {
            Some(last) if more => page::namespaces_token(&last.name),
            _ => String::new(),
        };
        let namespaces = found.into_iter().map(encode).collect();
        Ok(Response::new(api::ListNamespacesResponse { namespaces, next_page_token }))
    }

    async fn update_namespace(
        &self,
        request: Request<api::UpdateNamespaceRequest>,
    ) -> Result<Response<api::UpdateNamespaceResponse>, Status> {
        let mut wire = request.into_inner();
        let mut check = Check::default();
        let request_id = check.request_id(std::mem::take(&mut wire.request_id));
        let identity = check.identity("identity", std::mem::take(&mut wire.identity));
        let request = administer::request(&request_id, &wire);
        let name = check.name("name", std::mem::take(&mut wire.name));
        let change = change(&mut check, wire);
        check.finish()?;
        tracing::info!(namespace = name, identity, "the namespace is changed");
        let change = Change::UpdateNamespace { name: name.clone(), change };
        administer::make(&self.engine, change, request).await?;
        self.engine.namespace_changed(&name);
        let namespace = self.find(&name).await?;
        Ok(Response::new(api::UpdateNamespaceResponse { namespace: Some(encode(namespace)) }))
    }

    async fn add_search_attributes(
        &self,
        request: Request<api::AddSearchAttributesRequest>,
    ) -> Result<Response<api::AddSearchAttributesResponse>, Status> {
        let mut wire = request.into_inner();
        let mut check = Check::default();
        let request_id = check.request_id(std::mem::take(&mut wire.request_id));
        let identity = check.identity("identity", std::mem::take(&mut wire.identity));
        let request = administer::request(&request_id, &wire);
        let namespace = check.name_or_default("namespace", wire.namespace);
        let mut attributes = BTreeMap::new();
        if wire.search_attributes.is_empty() {
            check.refuse("search_attributes", reason::INVALID_ARGUMENT, "must name at least one");
        }
        for (name, kind) in wire.search_attributes.into_iter().take(limits::DECLARED_ATTRIBUTES_MAX + 1) {
            let field = format!("search_attributes[{name}]");
            let name = check.name(field.clone(), name);
            let kind = check.take(decode_attribute_type(&field, kind).map(Some));
            attributes.extend(kind.map(|kind| (name, kind)));
        }
        check.finish()?;
        tracing::info!(namespace, identity, count = attributes.len(), "search attributes are declared");
        let change = Change::AddSearchAttributes { namespace: namespace.clone(), attributes };
        administer::make(&self.engine, change, request).await?;
        let search_attributes = self.declared(&namespace).await?;
        Ok(Response::new(api::AddSearchAttributesResponse { search_attributes }))
    }

    async fn list_search_attributes(
        &self,
        request: Request<api::ListSearchAttributesRequest>,
    ) -> Result<Response<api::ListSearchAttributesResponse>, Status> {
        let api::ListSearchAttributesRequest { namespace } = request.into_inner();
        let mut check = Check::default();
        let namespace = check.name_or_default("namespace", namespace);
        check.finish()?;
        let search_attributes = self.declared(&namespace).await?;
        Ok(Response::new(api::ListSearchAttributesResponse { search_attributes }))
    }
}

/// Reads what is to change. A field that the mask does not name stays as it is.
fn change(check: &mut Check, wire: api::UpdateNamespaceRequest) -> NamespaceChange {
    let api::UpdateNamespaceRequest {
        name: _,
        description,
        default_step_retry,
        default_run_retry,
        default_run_timeout,
        update_mask,
        request_id: _,
        identity: _,
    } = wire;
    let mut change = NamespaceChange::default();
    let paths: BTreeSet<String> = update_mask.unwrap_or_default().paths.into_iter().collect();
    if paths.is_empty() {
        check.refuse("update_mask", reason::INVALID_ARGUMENT, "must name at least one field");
    }
    for path in &paths {
        match path.as_str() {
            "description" => {
                let text = check.text("description", description.clone(), limits::MESSAGE_BYTES_MAX);
                change.description = Some(text);
            }
            "default_step_retry" => {
                change.step_retry = Some(default_step_retry.clone().and_then(|p| check.policy(path, p)));
            }
            "default_run_retry" => {
                change.run_retry = Some(default_run_retry.clone().and_then(|p| check.policy(path, p)));
            }
            "default_run_timeout" => {
                change.run_timeout = Some(check.run_timeout(path, default_run_timeout));
            }
            _ => check.refuse(
                "update_mask",
                reason::INVALID_ARGUMENT,
                "names a field that is not one of these: \
                description, default_step_retry, default_run_retry, default_run_timeout",
            ),
        }
    }
    change
}

fn encode(namespace: Namespace) -> api::Namespace {
    let Namespace { name, description, created_at, settings } = namespace;
    let NamespaceSettings { step_retry, run_retry, run_timeout } = settings;
    api::Namespace {
        name,
        description,
        created_at: Some(encode_timestamp(created_at)),
        default_step_retry: step_retry.as_ref().map(encode_recorded_policy),
        default_run_retry: run_retry.as_ref().map(encode_recorded_policy),
        default_run_timeout: run_timeout.map(encode_duration),
    }
}
