//! `NamespaceService`.

use everstep_core::limits;
use everstep_engine::Engine;
use everstep_proto::api::{self, namespace_service_server::NamespaceService};
use everstep_proto::wire::encode_timestamp;
use everstep_store::Namespace;
use tonic::{Request, Response, Status};

use crate::check::Check;
use crate::{page, reason, status};

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
}

#[tonic::async_trait]
impl NamespaceService for NamespaceApi {
    async fn create_namespace(
        &self,
        request: Request<api::CreateNamespaceRequest>,
    ) -> Result<Response<api::CreateNamespaceResponse>, Status> {
        let api::CreateNamespaceRequest { name, description } = request.into_inner();
        let mut check = Check::default();
        let name = check.name("name", name);
        let description = check.text("description", description, limits::MESSAGE_BYTES_MAX);
        check.finish()?;
        let store = self.engine.store().clone();
        let wanted = name.clone();
        // A task of its own: a caller that hangs up must not leave a transaction half done.
        let write = tokio::spawn(async move { store.create_namespace(&wanted, &description).await });
        let created = write
            .await
            .map_err(|e| status::internal("making the namespace failed", &e))?
            .map_err(|e| status::of_store(&e))?;
        if !created {
            let message = format!("namespace '{name}' exists already");
            return Err(status::with_metadata(
                reason::NAMESPACE_ALREADY_EXISTS,
                message,
                [("namespace", name)],
            ));
        }
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
}

fn encode(namespace: Namespace) -> api::Namespace {
    let Namespace { name, description, created_at } = namespace;
    api::Namespace { name, description, created_at: Some(encode_timestamp(created_at)) }
}
