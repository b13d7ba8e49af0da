//! Integration tests: real servers and workers in this process, real stores beside it.

mod cluster;
mod crash;
mod links;
mod operator;
mod postgres;
mod postgres_errors;
mod run;
mod stores;
