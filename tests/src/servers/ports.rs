//! Picks TCP ports for test servers.
//!
//! The ports lie below the range that the system hands to outgoing connections. A server that is
//! killed and started again must get its port back; from the ephemeral range, a client that retries
//! against the dead server could be given that very port, and even connect to itself. For the same
//! reason a port is given out once in a process: many servers of a test binary are down for a moment.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::bail;

const PORT_MIN: u16 = 15_000;
const PORT_MAX: u16 = 31_999;
const ATTEMPTS_MAX: u32 = 200;

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port on 127.0.0.1 that nobody listens on now.
///
/// Another process may still take it before the server does; the caller then asks for another one.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..ATTEMPTS_MAX {
        let port = random_port();
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("found no free port on 127.0.0.1 between {PORT_MIN} and {PORT_MAX}")
}

fn random_port() -> u16 {
    let span = u64::from(PORT_MAX - PORT_MIN) + 1;
    // Every RandomState has its own random keys, so its empty hash is a random number.
    let offset = RandomState::new().build_hasher().finish() % span;
    PORT_MIN + u16::try_from(offset).unwrap_or(0)
}
