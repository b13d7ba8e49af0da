//! The harness of Everstep's integration tests: private servers, started and ended by the tests.
//!
//! What is *not* here: the tests themselves (`it/`, `sim/`).

pub mod cluster;
pub mod program;
pub mod servers;
