//! What each operating system says in its own way about processes.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The user that the process at the other end of a socket belongs to.
#[cfg(target_os = "linux")]
pub(super) fn peer_uid(socket: &UnixStream) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}

/// The user that the process at the other end of a socket belongs to.
#[cfg(not(target_os = "linux"))]
#[allow(unsafe_code)]
pub(super) fn peer_uid(socket: &UnixStream) -> io::Result<u32> {
    use std::os::fd::AsRawFd;
    let (mut uid, mut gid) = (0, 0);
    // SAFETY: the descriptor is open, and both results are written to variables of their type.
    match unsafe { libc::getpeereid(socket.as_raw_fd(), &mut uid, &mut gid) } {
        0 => Ok(uid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Processor time of this process.
pub(super) fn cpu_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
}

/// Resident memory of this process in bytes; 0 where the system has no `/proc`.
pub(super) fn resident() -> u64 {
    parse_resident(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn parse_resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_an_owner_time_and_memory() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert_eq!(peer_uid(&a).unwrap(), rustix::process::getuid().as_raw());
        assert!(cpu_time() > Duration::ZERO);
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t    12 kB\n"), 12 << 10);
        assert_eq!(parse_resident("VmRSS: many\n"), 0);
        if cfg!(target_os = "linux") {
            assert!(resident() > 100 << 10);
        }
    }
}
