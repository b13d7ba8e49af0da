//! One module a command: its arguments, whose docs are the help, then one function.

pub(crate) mod admin;
pub(crate) mod attribute;
pub(crate) mod bench;
pub(crate) mod build;
mod children;
pub(crate) mod crash;
pub(crate) mod demo;
pub(crate) mod dev;
pub(crate) mod doctor;
pub(crate) mod export;
pub(crate) mod gate;
mod later;
pub(crate) mod migrate;
pub(crate) mod namespace;
pub(crate) mod queue;
pub(crate) mod run;
mod send;
pub(crate) mod server;
pub(crate) mod step;
