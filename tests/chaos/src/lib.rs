//! Chaos on real processes of Everstep: servers, workers and clients under load, with a proxy on every link and
//! faults drawn from one seed; then a verdict by the checker.
//!
//! What is *not* here: the judgment (`everstep-checker`), the proxy (`everstep-faultproxy`), the programs that
//! runs execute (`everstep-tests`), and faults that need no real process (the simulation).

pub mod caller;
pub mod case;
pub mod clock;
pub mod dice;
pub mod enumerate;
pub mod export;
pub mod history;
pub mod journal;
pub mod judge;
pub mod link;
pub mod load;
pub mod mount;
pub mod nemesis;
pub mod pace;
pub mod plan;
pub mod process;
pub mod requests;
pub mod run;
pub mod scrape;
pub mod sink;
pub mod stuck;
pub mod topology;
pub mod worker;
