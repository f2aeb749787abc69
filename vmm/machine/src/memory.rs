//! Guest memory: one memfd, mapped shared, in the ranges of the address map.

use std::fs::File;
use std::io;

use boxlite_devices::GuestMemory;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, madvise};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::layout;

/// Allocates guest memory of `size` bytes. No page is touched yet: the host provides pages as the guest uses them.
pub(super) fn allocate(size: u64) -> io::Result<GuestMemory> {
    let file = File::from(memfd_create(c"boxlite-guest", MemfdFlags::CLOEXEC)?);
    ftruncate(&file, size)?;
    let mut offset = 0;
    let mut mapped = Vec::new();
    for (start, len) in layout::memory_ranges(size) {
        let len_here = usize::try_from(len).map_err(io::Error::other)?;
        mapped.push((start, len_here, Some(FileOffset::new(file.try_clone()?, offset))));
        offset += len;
    }
    let memory = GuestMemory::from_ranges_with_files(mapped).map_err(io::Error::other)?;
    prefer_huge_pages(&memory);
    Ok(memory)
}

/// Asks for huge pages where the host gives them to shared memory on request
/// (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`, `advise`): a guest that boots then faults
/// some dozen times instead of ten thousand, and a fault is what costs most in a nested guest.
#[allow(unsafe_code)]
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

#[cfg(test)]
mod tests {
    use vm_memory::{Address, Bytes};

    use super::*;

    #[test]
    fn every_range_is_memory_of_its_own() {
        let size = 4 << 30;
        let memory = allocate(size).unwrap();
        let ranges = layout::memory_ranges(size);
        assert_eq!(memory.num_regions(), ranges.len());
        let words: Vec<_> = ranges
            .iter()
            .flat_map(|(start, len)| [*start, start.unchecked_add(len - 8)])
            .zip(1u64..)
            .collect();
        for (at, value) in &words {
            memory.write_obj(*value, *at).unwrap();
        }
        for (at, value) in &words {
            assert_eq!(memory.read_obj::<u64>(*at).unwrap(), *value);
        }
        for (start, len) in ranges {
            assert!(memory.write_obj(0u64, start.unchecked_add(len)).is_err());
        }
    }
}
