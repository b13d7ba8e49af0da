//! The gate: who gets a connection at all. It counts places, in all and by peer, and turns away politely.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntGauge};
use tokio::net::TcpStream;

use super::ConnectionLimits;

/// What a client that is turned away is told, if it speaks HTTP/2: an empty SETTINGS, and a GOAWAY with
/// `ENHANCE_YOUR_CALM` and a word for people.
const GOODBYE: &[u8] = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x1c\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0btoo_many_connections";
/// How often the log hears of it.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// Hands out places.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    total: usize,
    per_peer: usize,
    open: IntGauge,
    refused: IntCounter,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    by_peer: HashMap<IpAddr, usize>,
    warned: Option<Instant>,
}

impl Gate {
    pub(super) fn new(limits: &ConnectionLimits, open: IntGauge, refused: IntCounter) -> Self {
        let held = Mutex::new(Held::default());
        let ConnectionLimits { total, per_peer, .. } = *limits;
        Self { shared: Arc::new(Shared { total, per_peer, open, refused, held }) }
    }

    /// A place for `peer`, if there is one.
    pub(super) fn enter(&self, peer: IpAddr) -> Option<Place> {
        let peer = network(peer);
        let mut held = self.shared.held.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = held.by_peer.get(&peer).copied().unwrap_or_default();
        if held.total < self.shared.total && of_peer < self.shared.per_peer {
            held.total += 1;
            held.by_peer.insert(peer, of_peer + 1);
            self.shared.open.inc();
            return Some(Place { shared: Arc::clone(&self.shared), peer });
        }
        self.shared.refused.inc();
        if held.warned.is_none_or(|last| last.elapsed() >= WARN_INTERVAL) {
            held.warned = Some(Instant::now());
            tracing::warn!(%peer, of_peer, total = held.total, "refusing connections: there are too many");
        }
        None
    }
}

/// Says goodbye and closes. It waits for nothing, for that would take the place that there is not.
pub(super) fn turn_away(stream: TcpStream) {
    // The socket's buffer is empty, so that this fits or the client is gone.
    let _ = stream.into_std().and_then(|mut stream| stream.write(GOODBYE));
}

/// A place that is taken; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Shared>,
    peer: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.shared.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total -= 1;
        if let Some(of_peer) = held.by_peer.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                held.by_peer.remove(&self.peer);
            }
        }
        self.shared.open.dec();
    }
}

/// Who counts as one peer: whoever has an IPv6 address has the 2^64 around it.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(total: usize, per_peer: usize) -> Gate {
        let limits = ConnectionLimits { total, per_peer, ..ConnectionLimits::default() };
        Gate::new(&limits, IntGauge::new("open", "x").unwrap(), IntCounter::new("refused", "x").unwrap())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn places_are_counted_in_all_and_by_peer() {
        let gate = gate(3, 2);
        let first = gate.enter(ip("192.0.2.1")).unwrap();
        let second = gate.enter(ip("::ffff:192.0.2.1")).unwrap();
        assert!(gate.enter(ip("192.0.2.1")).is_none(), "the peer has its two");
        let other = gate.enter(ip("192.0.2.2")).unwrap();
        assert!(gate.enter(ip("192.0.2.3")).is_none(), "the house is full");
        drop(first);
        let again = gate.enter(ip("192.0.2.1")).unwrap();
        drop((second, other, again));
        assert!(gate.shared.held.lock().unwrap().by_peer.is_empty());
        assert_eq!((gate.shared.open.get(), gate.shared.refused.get()), (0, 2));
    }

    #[test]
    fn a_network_of_ipv6_is_one_peer() {
        let gate = gate(10, 1);
        let _held = gate.enter(ip("2001:db8::1")).unwrap();
        assert!(gate.enter(ip("2001:db8::ffff:1")).is_none());
        assert!(gate.enter(ip("2001:db8:0:1::1")).is_some());
    }
}
