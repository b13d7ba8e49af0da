//! Picks TCP ports for test servers.
//!
//! The ports lie below the range that the system hands to outgoing connections. A server that is
//! killed and started again must get its port back; from the ephemeral range, a client that retries
//! against the dead server could be given that very port, and even connect to itself.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::bail;

const PORT_MIN: u16 = 15_000;
const PORT_MAX: u16 = 31_999;
const ATTEMPTS_MAX: u32 = 200;

/// A port on 127.0.0.1 that nobody listens on now.
///
/// Another process may still take it before the server does; the caller then asks for another one.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..ATTEMPTS_MAX {
        let port = random_port();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
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
