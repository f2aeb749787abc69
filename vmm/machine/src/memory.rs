//! Guest memory, in the ranges of the address map.

use std::io;

use boxlite_devices::GuestMemory;

use crate::arch::layout;
use crate::sys;

/// Allocates guest memory of `size` bytes. No page is touched yet: the host provides pages as the guest uses them.
pub(super) fn allocate(size: u64) -> io::Result<GuestMemory> {
    let ranges = layout::memory_ranges(size).into_iter().map(|(start, len)| {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        Ok((start, len))
    });
    sys::guest_memory(&ranges.collect::<io::Result<Vec<_>>>()?)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Address, Bytes, GuestMemoryBackend};

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
