//! What the operating systems report differently about processes.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The user ID of the process at the other end of a socket.
#[cfg(target_os = "linux")]
pub(super) fn peer_uid(socket: &UnixStream) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}

/// The user ID of the process at the other end of a socket.
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

/// Drops this process's pages of code and constants: most of the code that has run built the VM and will not run
/// again. Code that does run is mapped again from the page cache.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub(super) fn release_startup_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, len) in maps.lines().filter_map(parse_code) {
        // SAFETY: the pages are a file's, mapped privately, and were never writable: they are as they
        // were read, and are read again when they are needed.
        let _ = unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED) };
    }
}

/// Does nothing on other systems.
#[cfg(not(target_os = "linux"))]
pub(super) fn release_startup_code() {}

/// Address and length in bytes of a line of `/proc/self/maps`, if it is code of a file or where the
/// constants of one begin. What is further on may have been relocated before it was protected.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
fn parse_code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_whitespace();
    let (range, rights, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let path = fields.nth(2)?;
    let as_read = rights == "r-xp" || (rights == "r--p" && offset == "00000000");
    if !as_read || !path.starts_with('/') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
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

    #[test]
    fn only_code_of_files_is_released_and_this_goes_on() {
        let code = "1000-3000 r-xp 00001000 fe:00 42  /usr/bin/x y";
        assert_eq!(parse_code(code), Some((0x1000, 0x2000)));
        let constants = "1000-3000 r--p 00000000 fe:00 42  /usr/bin/x";
        assert_eq!(parse_code(constants), Some((0x1000, 0x2000)));
        for other in [
            "1000-3000 r--p 00001000 fe:00 42  /usr/bin/x",
            "1000-3000 rwxp 00001000 fe:00 42  /usr/bin/x",
            "1000-3000 r-xp 00000000 00:00 0   [vdso]",
            "1000-3000 r-xp 00000000 00:00 0",
            "3000-1000 r-xp 00001000 fe:00 42  /usr/bin/x",
            "",
        ] {
            assert_eq!(parse_code(other), None, "{other}");
        }
        release_startup_code();
    }
}
