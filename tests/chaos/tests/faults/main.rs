//! One fault at a time, on real processes under load. Each test ends with the checker's verdict, and has a point of
//! its own besides.

mod support;

mod clocks;
mod collector;
mod descriptors;
mod disk;
mod late_answer;
mod memory;
mod nats;
mod owner;
mod poison_code;
mod poison_history;
mod postgres;
mod server_kills;
mod sigterm;
mod stale_worker;
mod worker_kills;
