//! Integration tests: real servers and workers in this process, real stores beside it.

mod postgres;
mod run;
mod stores;
