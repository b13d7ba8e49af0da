//! The wire contract: generated messages and services, their conversions to and from the core's types, the
//! event codec of the log, the `.history` file, and the W3C trace headers.
//!
//! Generated types stay on this side of the conversions: what is behind a server or an SDK speaks
//! `everstep-core`. Nothing here decides anything; a message is either a core value or an
//! [`InvalidMessage`] that names the field.

pub mod file;
pub mod row;
pub mod trace;
pub mod wire;

mod generated;
#[cfg(test)]
mod samples;

pub use generated::FILE_DESCRIPTOR_SET;
pub use generated::everstep::api::v1 as api;
pub use generated::everstep::history::v1 as history;
pub use generated::everstep::internal::v1 as internal;
pub use wire::{InvalidKind, InvalidMessage};
