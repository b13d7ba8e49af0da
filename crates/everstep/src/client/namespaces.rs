//! Namespaces: what they set for their runs, and which search attributes they declare.

use std::collections::BTreeMap;
use std::time::Duration;

use everstep_core::{Attribute, AttributeType, RetryPolicy};
use everstep_proto::api::namespace_service_client::NamespaceServiceClient;
use everstep_proto::{api, wire};
use tonic::transport::Channel;

use super::call::{refused, retrying};
use super::{Client, new_request_id};
use crate::{ClientError, IntoAttribute};

/// A filter of runs by a search attribute that the namespace declares.
///
/// ```
/// use everstep::client::{AttributeFilter, Comparison, RunListFilter};
///
/// let filter = RunListFilter {
///     attributes: vec![AttributeFilter::eq("customer", "acme"), AttributeFilter::new("amount", Comparison::Ge, 10)],
///     ..RunListFilter::default()
/// };
/// # let _ = filter;
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct AttributeFilter {
    name: String,
    op: Comparison,
    value: Option<Attribute>,
}

/// How an attribute stands to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// It is the value; of several keywords, one is.
    Eq,
    /// The run has it, and it is not the value; of several keywords, none is.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
}

impl AttributeFilter {
    /// By how the attribute stands to a value.
    pub fn new(name: impl Into<String>, op: Comparison, value: impl IntoAttribute) -> Self {
        Self { name: name.into(), op, value: value.into_attribute() }
    }

    /// By its value; of several keywords, by one of them.
    pub fn eq(name: impl Into<String>, value: impl IntoAttribute) -> Self {
        Self::new(name, Comparison::Eq, value)
    }

    pub(super) fn encode(&self) -> api::AttributeFilter {
        let op = match self.op {
            Comparison::Eq => api::Comparison::Eq,
            Comparison::Ne => api::Comparison::Ne,
            Comparison::Lt => api::Comparison::Lt,
            Comparison::Le => api::Comparison::Le,
            Comparison::Gt => api::Comparison::Gt,
            Comparison::Ge => api::Comparison::Ge,
        };
        let value = self.value.as_ref().map(wire::encode_attribute);
        api::AttributeFilter { name: self.name.clone(), op: op.into(), value }
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct NamespaceDescription {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// The policy of steps whose code sets none.
    pub default_step_retry: Option<RetryPolicy>,
    /// The policy of runs that are started without one.
    pub default_run_retry: Option<RetryPolicy>,
    /// The longest life of runs that are started without one.
    pub default_run_timeout: Option<Duration>,
}

impl NamespaceDescription {
    fn decode(wire: Option<api::Namespace>) -> Result<Self, ClientError> {
        let missing = || ClientError::Protocol("the answer has no namespace".to_owned());
        let protocol = |e: everstep_proto::InvalidMessage| ClientError::Protocol(e.to_string());
        let api::Namespace {
            name,
            description,
            created_at: _,
            default_step_retry,
            default_run_retry,
            default_run_timeout,
        } = wire.ok_or_else(missing)?;
        let policy = |wire: Option<_>| {
            wire.map(|policy| wire::decode_recorded_policy("policy", policy)).transpose().map_err(protocol)
        };
        let timeout =
            default_run_timeout.map(|d| wire::decode_duration("default_run_timeout", d)).transpose();
        Ok(Self {
            name,
            description,
            default_step_retry: policy(default_step_retry)?,
            default_run_retry: policy(default_run_retry)?,
            default_run_timeout: timeout.map_err(protocol)?.map(|d| d.to_std()),
        })
    }
}

/// What to change of a namespace. Runs that start from then on get it; those that are there keep what they began with.
#[derive(Clone, Debug)]
#[must_use = "it does nothing until it is given to Client::update_namespace"]
pub struct NamespaceUpdate {
    request: api::UpdateNamespaceRequest,
}

impl NamespaceUpdate {
    /// Of this namespace; nothing yet.
    pub fn of(name: impl Into<String>) -> Self {
        Self {
            request: api::UpdateNamespaceRequest {
                name: name.into(),
                request_id: new_request_id(),
                ..api::UpdateNamespaceRequest::default()
            },
        }
    }

    fn set(mut self, field: &str) -> Self {
        let paths = &mut self.request.update_mask.get_or_insert_default().paths;
        if !paths.iter().any(|path| path == field) {
            paths.push(field.to_owned());
        }
        self
    }

    /// For people.
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.request.description = text.into();
        self.set("description")
    }

    /// The policy of steps whose code sets none; `None` takes it away.
    pub fn default_step_retry(mut self, policy: Option<&RetryPolicy>) -> Self {
        self.request.default_step_retry = policy.map(wire::encode_recorded_policy);
        self.set("default_step_retry")
    }

    /// The policy of runs that are started without one; `None` takes it away.
    pub fn default_run_retry(mut self, policy: Option<&RetryPolicy>) -> Self {
        self.request.default_run_retry = policy.map(wire::encode_recorded_policy);
        self.set("default_run_retry")
    }

    /// The longest life of runs that are started without one; `None` takes it away.
    pub fn default_run_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.request.default_run_timeout = timeout.map(|timeout| wire::encode_duration(timeout.into()));
        self.set("default_run_timeout")
    }

    /// Your id of this request: it takes effect once within 24 h, however often it is sent.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request.request_id = id.into();
        self
    }
}

impl Client {
    fn namespaces(&self) -> NamespaceServiceClient<Channel> {
        NamespaceServiceClient::new(self.channel.clone())
    }

    /// Makes a namespace.
    ///
    /// # Errors
    /// [`ClientError`], with reason `NAMESPACE_ALREADY_EXISTS` when it is there.
    pub async fn create_namespace(&self, name: &str, description: &str) -> Result<(), ClientError> {
        let request = api::CreateNamespaceRequest {
            name: name.to_owned(),
            description: description.to_owned(),
            request_id: new_request_id(),
        };
        retrying(|| {
            let (mut namespaces, request) = (self.namespaces(), request.clone());
            async move { namespaces.create_namespace(request).await }
        })
        .await?;
        Ok(())
    }

    /// Shows a namespace.
    ///
    /// # Errors
    /// [`ClientError`], with reason `NAMESPACE_NOT_FOUND` when there is none.
    pub async fn namespace_description(&self, name: &str) -> Result<NamespaceDescription, ClientError> {
        let request = api::GetNamespaceRequest { name: name.to_owned() };
        let answer = self.namespaces().get_namespace(request).await.map_err(refused)?;
        NamespaceDescription::decode(answer.into_inner().namespace)
    }

    /// Every namespace, by name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_namespaces(&self) -> Result<Vec<NamespaceDescription>, ClientError> {
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = api::ListNamespacesRequest { page_size: 1_000, page_token };
            let page = self.namespaces().list_namespaces(request).await.map_err(refused)?.into_inner();
            for namespace in page.namespaces {
                all.push(NamespaceDescription::decode(Some(namespace))?);
            }
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            page_token = page.next_page_token;
        }
    }

    /// Changes what a namespace sets.
    ///
    /// ```no_run
    /// # use everstep::client::NamespaceUpdate;
    /// # use everstep::RetryPolicy;
    /// # async fn example(client: everstep::Client) -> Result<(), everstep::ClientError> {
    /// let patient = RetryPolicy { maximum_attempts: 20, ..RetryPolicy::default() };
    /// client.update_namespace(NamespaceUpdate::of("default").default_step_retry(Some(&patient))).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`], with reason `NAMESPACE_NOT_FOUND` when there is none.
    pub async fn update_namespace(
        &self,
        update: NamespaceUpdate,
    ) -> Result<NamespaceDescription, ClientError> {
        let request = api::UpdateNamespaceRequest { identity: self.identity_text(), ..update.request };
        let answer = retrying(|| {
            let (mut namespaces, request) = (self.namespaces(), request.clone());
            async move { namespaces.update_namespace(request).await }
        })
        .await?;
        NamespaceDescription::decode(answer.namespace)
    }

    /// Declares search attributes in the client's namespace; those that it has already stay. Gives all that it has.
    ///
    /// ```no_run
    /// # use everstep::AttributeType;
    /// # async fn example(client: everstep::Client) -> Result<(), everstep::ClientError> {
    /// let wanted = [("customer", AttributeType::Keyword), ("amount", AttributeType::Int)];
    /// client.add_search_attributes(wanted).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`], with reason `ATTRIBUTE_TYPE_MISMATCH` when one is there with another type.
    pub async fn add_search_attributes<N: Into<String>>(
        &self,
        attributes: impl IntoIterator<Item = (N, AttributeType)>,
    ) -> Result<BTreeMap<String, AttributeType>, ClientError> {
        let encoded = |(name, kind): (N, _)| (name.into(), wire::encode_attribute_type(kind).into());
        let request = api::AddSearchAttributesRequest {
            namespace: self.namespace.clone(),
            search_attributes: attributes.into_iter().map(encoded).collect(),
            request_id: new_request_id(),
            identity: self.identity_text(),
        };
        let answer = retrying(|| {
            let (mut namespaces, request) = (self.namespaces(), request.clone());
            async move { namespaces.add_search_attributes(request).await }
        })
        .await?;
        declared(answer.search_attributes)
    }

    /// The search attributes that the client's namespace declares.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn search_attributes(&self) -> Result<BTreeMap<String, AttributeType>, ClientError> {
        let request = api::ListSearchAttributesRequest { namespace: self.namespace.clone() };
        let answer = retrying(|| {
            let (mut namespaces, request) = (self.namespaces(), request.clone());
            async move { namespaces.list_search_attributes(request).await }
        })
        .await?;
        declared(answer.search_attributes)
    }
}

fn declared(wire: BTreeMap<String, i32>) -> Result<BTreeMap<String, AttributeType>, ClientError> {
    let kind =
        |(name, kind): (String, i32)| Ok((name, wire::decode_attribute_type("search_attributes", kind)?));
    let decoded: Result<_, everstep_proto::InvalidMessage> = wire.into_iter().map(kind).collect();
    decoded.map_err(|e| ClientError::Protocol(e.to_string()))
}
