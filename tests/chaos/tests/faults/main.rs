//! One fault at a time, on real processes under load. Each test ends with the checker's verdict, and has a point of
//! its own besides.

mod support;

mod bits;
mod clocks;
mod collector;
mod descriptors;
mod disk;
mod failover;
mod late_answer;
mod memory;
mod monotonic;
mod namespaces;
mod nats;
mod nats_limits;
mod owner;
mod poison_code;
mod poison_history;
mod pooler;
mod postgres;
mod server_kills;
mod sigterm;
mod stale_worker;
mod worker_kills;
