//! The binary as its users run it: processes, streams and exit codes.

mod alerts;
mod backup;
mod collector;
mod crash;
mod gate;
mod kills;
mod load;
mod migrations;
mod power;
mod refusals;
mod shim;
mod support;
mod telemetry;
mod upgrade;
