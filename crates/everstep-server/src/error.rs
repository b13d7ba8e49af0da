//! Why a server does not start or run.

use std::io;
use std::net::SocketAddr;

/// The server cannot be started or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can be reached from other machines, and there is no authentication yet.
    #[error(
        "refusing to listen on {addr}: it can be reached from other machines and there is no authentication yet; \
         use a loopback address such as 127.0.0.1:{}, or --insecure-allow-remote", addr.port()
    )]
    RemoteRefused {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The address is in use, not of this machine, or forbidden.
    #[error("cannot listen on {addr}")]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The contract that is compiled in cannot be read.
    #[error("cannot set up server reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// A metric cannot be registered.
    #[error("cannot set up metrics")]
    Metrics(#[source] prometheus::Error),
    /// The transport failed.
    #[error("the server failed")]
    Transport(#[source] tonic::transport::Error),
}
