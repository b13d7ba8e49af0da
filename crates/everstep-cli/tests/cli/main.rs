//! The binary as its users run it: processes, streams and exit codes.

mod collector;
mod crash;
mod kills;
mod refusals;
mod support;
mod telemetry;
