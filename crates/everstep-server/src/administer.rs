//! Administrative calls: each is made once for its request id, whichever node it reaches.

use everstep_engine::Engine;
use everstep_store::{AdminRequest, Administered, Change};
use prost::Message;
use sha2::{Digest, Sha256};
use tonic::Status;

use crate::{reason, status};

/// The request behind a call: `body` is the message without the parts that do not make it another request. `None`
/// when the caller gave no id.
pub(crate) fn request(request_id: &str, body: &impl Message) -> Option<AdminRequest> {
    let body_hash = Sha256::digest(body.encode_to_vec()).into();
    (!request_id.is_empty()).then(|| AdminRequest { request_id: request_id.to_owned(), body_hash })
}

/// Makes a change, unless it was made for the same request before.
pub(crate) async fn make(
    engine: &Engine,
    change: Change,
    request: Option<AdminRequest>,
) -> Result<(), Status> {
    let store = engine.store().clone();
    let made = store.administer(&change, request.as_ref()).await.map_err(|e| status::of_store(&e))?;
    let namespace = || change.namespace().to_owned();
    match made {
        Administered::Done | Administered::Again => Ok(()),
        Administered::OtherRequest => {
            let message = "request id was used before with a different body";
            Err(status::with_metadata(reason::IDEMPOTENCY_MISMATCH, message, [("namespace", namespace())]))
        }
        Administered::Exists => {
            let message = format!("namespace '{}' exists already", change.namespace());
            Err(status::with_metadata(
                reason::NAMESPACE_ALREADY_EXISTS,
                message,
                [("namespace", namespace())],
            ))
        }
        Administered::NoNamespace => Err(status::namespace_not_found(change.namespace())),
        Administered::OtherType { name, declared } => {
            let problem = format!("is declared as {} already, and a type never changes", declared.as_str());
            let field = format!("search_attributes[{name}]");
            Err(status::of_violations(vec![status::violation(
                field,
                reason::ATTRIBUTE_TYPE_MISMATCH,
                problem,
            )]))
        }
        Administered::TooMany { actual } => {
            let limit = everstep_core::limits::DECLARED_ATTRIBUTES_MAX;
            let message =
                format!("search attributes of the namespace is {actual}, more than the limit of {limit}");
            Err(status::of(reason::LIMIT_EXCEEDED, message))
        }
    }
}
