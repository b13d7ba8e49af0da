//! What processes of this machine have used so far, as Linux tells it.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

/// Clock ticks a second in `/proc`: a constant of Linux on every platform that this is built for.
const TICKS: u64 = 100;

/// `/proc/PID/stat`, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// Of the process itself.
    own: u64,
    /// Of its children that have ended and were waited for.
    ended: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The program's name stands in parentheses and may hold anything.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(1)?).ok()?,
            own: number(11)? + number(12)?,
            ended: number(13)? + number(14)?,
        })
    }
}

fn time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1_000 / TICKS)
}

/// Processor time of a process.
pub(super) fn processor_time(pid: u32) -> Option<Duration> {
    Stat::of(pid).map(|stat| time(stat.own))
}

/// Processor time of a process and its children, those included that have ended.
pub(super) fn family_time(pid: u32) -> Option<Duration> {
    let head = Stat::of(pid)?;
    let children = pids().filter_map(Stat::of).filter(|stat| stat.parent == pid);
    Some(time(head.own + head.ended + children.map(|stat| stat.own).sum::<u64>()))
}

/// The parent of a process, if that runs the same program: the head of a family.
pub(super) fn head_of_family(pid: u32, program: &str) -> Option<u32> {
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let parent = Stat::of(pid)?.parent;
    (name(pid).trim() == program && name(parent).trim() == program).then_some(parent)
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Resident memory.
pub(super) fn resident_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1_024.0
}

/// Bytes that a process has sent towards a disk.
pub(super) fn written_bytes(pid: u32) -> Option<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.parse().ok()
}

/// Whether a host is this machine, as far as its name tells.
pub(super) fn is_local(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    // A path is the folder of a socket.
    host == "localhost" || host.starts_with('/') || address.is_ok_and(|address| address.is_loopback())
}

/// The process that listens on a port, if this process may know.
pub(super) fn listener(port: u16) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let sockets: Vec<String> = tables.iter().flat_map(|table| listening(table, port)).collect();
    pids().find(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|file| fs::read_link(file.path()).ok())
            .any(|target| target.to_str().is_some_and(|name| sockets.iter().any(|socket| socket == name)))
    })
}

/// The names of the listening sockets of a port, as `/proc/PID/fd` shows them.
fn listening(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let end = format!(":{port:04X}");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() > 9 && row[1].ends_with(&end) && row[3] == LISTEN)
        .map(|row| format!("socket:[{}]", row[9]))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_name_with_a_parenthesis_does_not_shift_the_fields() {
        let text = "7 (a) b) S 5 7 7 0 -1 4194560 1 2 3 4 11 22 33 44 20 0 1 0 99";
        assert_eq!(Stat::parse(text), Some(Stat { parent: 5, own: 33, ended: 77 }));
        assert_eq!(Stat::parse("7 (a) S 5"), None);
    }

    #[test]
    fn the_figures_of_this_process_are_found() -> anyhow::Result<()> {
        let pid = std::process::id();
        assert!(resident_mib(pid) > 0.0);
        assert!(processor_time(pid).is_some() && processor_time(pid) <= family_time(pid));
        let server = TcpListener::bind("127.0.0.1:0")?;
        let port = server.local_addr()?.port();
        assert_eq!(listener(port), Some(pid));
        drop(server);
        assert_eq!(listener(port), None);
        Ok(())
    }

    #[test]
    fn hosts_of_this_machine_are_told_from_others() {
        for host in ["localhost", "127.0.0.1", "[::1]", "::1", "/run/postgresql"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["10.0.0.1", "database.example", ""] {
            assert!(!is_local(host), "{host}");
        }
    }
}
