//! Integration tests: real servers and workers in this process, real stores beside it.

mod cluster;
mod crash;
mod doubt;
mod kit;
mod links;
mod operator;
mod postgres;
mod postgres_errors;
mod queries;
mod run;
mod saga;
mod stores;
mod versions;
