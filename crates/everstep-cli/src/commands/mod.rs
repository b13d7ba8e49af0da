//! One module a command: its arguments, whose docs are the help, then one function.

pub(crate) mod admin;
pub(crate) mod bench;
pub(crate) mod crash;
pub(crate) mod demo;
pub(crate) mod dev;
pub(crate) mod doctor;
pub(crate) mod migrate;
pub(crate) mod run;
pub(crate) mod server;
pub(crate) mod step;
