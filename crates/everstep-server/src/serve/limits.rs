//! How much a server lets its clients have: connections, files, and time for what costs a client nothing.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are kept back for the store, dispatch and logs, where the process has enough of them.
const FILES_RESERVED: usize = 128;

/// Limits on connections. What goes on within one is limited by the transport.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Most connections at one time. The process's limit on open files may lower it.
    pub total: usize,
    /// Most connections of one peer at one time: an IPv4 address, or a /64 network of IPv6.
    pub per_peer: usize,
    /// How long a new connection may take to show its protocol: the HTTP/2 preface, or that it is HTTP/1.
    pub first_bytes: Duration,
    /// How long a connection may leave what was sent to it unread by its system.
    pub unread: Duration,
}

impl Default for ConnectionLimits {
    /// One peer can take half of the places: many workers come through one proxy or from one machine.
    fn default() -> Self {
        Self {
            total: 8_192,
            per_peer: 4_096,
            first_bytes: Duration::from_secs(10),
            unread: Duration::from_secs(30),
        }
    }
}

impl ConnectionLimits {
    /// Lowers the total to what the process's open files allow, so that a full house leaves the store some.
    pub(super) fn within_open_files(mut self) -> Self {
        if let Some(files) = getrlimit(Resource::Nofile).current.and_then(|n| usize::try_from(n).ok()) {
            self.total = self.total.min(spare_files(files));
        }
        self
    }
}

fn spare_files(files: usize) -> usize {
    files - FILES_RESERVED.min(files / 2)
}

/// Raises the process's soft limit on open files to the hard one: the soft one is low on many systems for
/// the sake of old programs, and every connection is a file.
///
/// It is for a process that is a server, not for one that has a server within it. A system that does not
/// allow it leaves the limit as it was; the server then takes fewer connections.
pub fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => tracing::debug!(?maximum, "raised the limit on open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit on open files"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_files_are_kept_back() {
        assert_eq!(spare_files(1_024), 896);
        assert_eq!(spare_files(64), 32);
        assert_eq!(spare_files(1), 1);
        assert_eq!(spare_files(0), 0);
    }
}
