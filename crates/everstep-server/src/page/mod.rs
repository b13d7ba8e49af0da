//! Page tokens: where the next page begins, tied to the question that it belongs to.
//!
//! A token is hex of a version byte, 8 bytes of a hash of the question, and the position. It holds nothing
//! secret; the hash keeps a token from being used with other filters or in another namespace by mistake.

#[cfg(test)]
mod tests;

use everstep_core::{OpId, RunId, validate_name};
use everstep_store::{PageToken, RunFilter};
use sha2::{Digest, Sha256};
use tonic::Status;
use uuid::Uuid;

use crate::steps::Question;
use crate::{reason, status};

const VERSION: u8 = 1;
const HASH_BYTES: usize = 8;

/// The token of the page after `last`.
pub(crate) fn runs_token(filter: &RunFilter, last: RunId) -> String {
    token(runs_question(filter), last.as_bytes())
}

/// Reads the token of a page of runs; empty for the first page.
///
/// # Errors
/// `INVALID_PAGE_TOKEN` when it is not a token of this question.
pub(crate) fn runs_page(filter: &RunFilter, text: &str) -> Result<Option<PageToken>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let position = position(runs_question(filter), text)?;
    let id = Uuid::from_slice(&position).map_err(|_| invalid())?;
    Ok(Some(PageToken(RunId::from_uuid(id))))
}

/// The token of the page after the namespace `last`.
pub(crate) fn namespaces_token(last: &str) -> String {
    token(namespaces_question(), last.as_bytes())
}

/// Reads the token of a page of namespaces: the name that the page comes after.
///
/// # Errors
/// `INVALID_PAGE_TOKEN` when it is not a token of this question.
pub(crate) fn namespaces_page(text: &str) -> Result<String, Status> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let name = String::from_utf8(position(namespaces_question(), text)?).map_err(|_| invalid())?;
    validate_name("page_token", &name).map_err(|_| invalid())?;
    Ok(name)
}

/// The token of the page after this step.
pub(crate) fn steps_token(question: &Question, (run, step): (RunId, OpId)) -> String {
    token(steps_question(question), &[&run.as_bytes()[..], &step.0.to_be_bytes()].concat())
}

/// Reads the token of a page of steps; empty for the first page.
///
/// # Errors
/// `INVALID_PAGE_TOKEN` when it is not a token of this question.
pub(crate) fn steps_page(question: &Question, text: &str) -> Result<Option<(RunId, OpId)>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let position = position(steps_question(question), text)?;
    let (run, step) = position.split_at_checked(16).ok_or_else(invalid)?;
    let run = Uuid::from_slice(run).map_err(|_| invalid())?;
    let step: [u8; 4] = step.try_into().map_err(|_| invalid())?;
    Ok(Some((RunId::from_uuid(run), OpId(u32::from_be_bytes(step)))))
}

fn steps_question(question: &Question) -> [u8; HASH_BYTES] {
    let Question { namespace, run, task_queue, state } = question;
    let run = run.map(|run| run.to_string()).unwrap_or_default();
    let queue = task_queue.as_deref().unwrap_or_default();
    hash(&["steps", namespace, &run, queue, state.as_str_name()].join("\0"))
}

/// The token of the page after the queue `last`.
pub(crate) fn queues_token(namespace: &str, last: &str) -> String {
    token(queues_question(namespace), last.as_bytes())
}

/// Reads the token of a page of queues: the name that the page comes after.
///
/// # Errors
/// `INVALID_PAGE_TOKEN` when it is not a token of this question.
pub(crate) fn queues_page(namespace: &str, text: &str) -> Result<String, Status> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let name = String::from_utf8(position(queues_question(namespace), text)?).map_err(|_| invalid())?;
    validate_name("page_token", &name).map_err(|_| invalid())?;
    Ok(name)
}

fn queues_question(namespace: &str) -> [u8; HASH_BYTES] {
    hash(&["queues", namespace].join("\0"))
}

fn runs_question(filter: &RunFilter) -> [u8; HASH_BYTES] {
    let RunFilter { namespace, workflow_id, workflow_type, statuses, parent, attributes, waiting } = filter;
    let mut statuses: Vec<&str> = statuses.iter().map(|s| s.as_str()).collect();
    statuses.sort_unstable();
    statuses.dedup();
    // Names cannot hold NUL, so the parts cannot run into each other.
    let parts = [
        "runs",
        namespace,
        workflow_id.as_deref().unwrap_or_default(),
        workflow_type.as_deref().unwrap_or_default(),
        &statuses.join(","),
    ];
    let mut question = parts.join("\0");
    // Who waits changes between two pages; what was asked for does not.
    if let Some(waiting) = waiting {
        question.push_str(&format!("\0waiting {}", waiting.build));
    }
    if let Some(parent) = parent {
        question.push_str(&format!("\0parent {parent}"));
    }
    // A keyword may hold anything: the text that describes a filter escapes it.
    for filter in attributes {
        question.push_str(&format!("\0{filter:?}"));
    }
    hash(&question)
}

fn namespaces_question() -> [u8; HASH_BYTES] {
    hash("namespaces")
}

fn hash(question: &str) -> [u8; HASH_BYTES] {
    let digest: [u8; 32] = Sha256::digest(question.as_bytes()).into();
    let mut short = [0; HASH_BYTES];
    short.copy_from_slice(&digest[..HASH_BYTES]);
    short
}

fn token(question: [u8; HASH_BYTES], position: &[u8]) -> String {
    let bytes = std::iter::once(VERSION).chain(question).chain(position.iter().copied());
    bytes.map(|b| format!("{b:02x}")).collect()
}

fn position(question: [u8; HASH_BYTES], text: &str) -> Result<Vec<u8>, Status> {
    let bytes = from_hex(text).ok_or_else(invalid)?;
    let (head, position) = bytes.split_at_checked(1 + HASH_BYTES).ok_or_else(invalid)?;
    if head[0] == VERSION && head[1..] == question { Ok(position.to_vec()) } else { Err(invalid()) }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

fn invalid() -> Status {
    let problem = "is not the next_page_token of the response before, for the same filters";
    status::of_violations(vec![status::violation("page_token", reason::INVALID_PAGE_TOKEN, problem)])
}
