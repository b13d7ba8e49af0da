//! The binary as its users run it: processes, streams and exit codes.

mod alerts;
mod backup;
mod collector;
mod crash;
mod doubts;
mod gate;
mod kills;
mod load;
mod migrations;
mod power;
mod refusals;
mod runs;
mod shim;
mod steps;
mod support;
mod talk;
mod telemetry;
mod upgrade;
