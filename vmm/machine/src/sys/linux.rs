//! Linux: `/proc`, memfds, huge pages.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;

use boxlite_devices::GuestMemory;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, madvise};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::Paths;

/// The user ID of the process at the other end of a socket.
pub(in super::super) fn peer_uid(socket: &UnixStream) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}

/// Resident memory of this process in bytes; 0 if it is unknown.
pub(in super::super) fn resident() -> u64 {
    parse_resident(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn parse_resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Memory at these guest-physical addresses and of these lengths: one memfd, mapped shared.
pub(in super::super) fn guest_memory(ranges: &[(GuestAddress, usize)]) -> io::Result<GuestMemory> {
    let file = File::from(memfd_create(c"boxlite-guest", MemfdFlags::CLOEXEC)?);
    let size: u64 = ranges.iter().map(|(_, len)| *len as u64).sum();
    ftruncate(&file, size)?;
    let mut offset = 0;
    let mut mapped = Vec::new();
    for (start, len) in ranges {
        mapped.push((*start, *len, Some(FileOffset::new(file.try_clone()?, offset))));
        offset += *len as u64;
    }
    let memory = GuestMemory::from_ranges_with_files(mapped).map_err(io::Error::other)?;
    prefer_huge_pages(&memory);
    Ok(memory)
}

/// Asks for huge pages where the host gives them to shared memory on request
/// (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`, `advise`): a guest that boots then faults
/// some dozen times instead of ten thousand, and a fault is what costs most in a nested guest.
fn prefer_huge_pages(memory: &GuestMemory) {
    for region in memory.iter() {
        let (start, len) = (region.as_ptr().cast(), region.len() as usize);
        // SAFETY: the region is a mapping of that length, and the advice changes no content.
        let advised = unsafe { madvise(start, len, Advice::LinuxHugepage) };
        if let Err(e) = advised {
            tracing::debug!("no huge pages for guest memory: {e}");
        }
    }
}

/// Does nothing: Linux has no jail around a VM process yet.
pub(in super::super) fn confine(_paths: &Paths<'_>) -> io::Result<()> {
    Ok(())
}

/// Drops this process's pages of code and constants: most of the code that has run built the VM and will not run
/// again. Code that does run is mapped again from the page cache.
pub(in super::super) fn release_startup_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, len) in maps.lines().filter_map(parse_code) {
        // SAFETY: the pages are a file's, mapped privately, and were never writable: they are as they
        // were read, and are read again when they are needed.
        let _ = unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED) };
    }
}

/// Address and length in bytes of a line of `/proc/self/maps`, if it is code of a file or where the
/// constants of one begin. What is further on may have been relocated before it was protected.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_parsed() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t    12 kB\n"), 12 << 10);
        assert_eq!(parse_resident("VmRSS: many\n"), 0);
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
