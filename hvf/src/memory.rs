//! Guest memory: ranges, mapped and unmapped.

use boxlite_hv::{Mappings, Perms, Result};

use crate::{layout, sys};

/// The mappings of a VM. The framework knows them by their ranges.
#[derive(Debug)]
pub(super) struct Memory {
    mappings: Mappings<()>,
}

impl Memory {
    pub(super) fn new(address_bits: u32) -> Self {
        Self { mappings: Mappings::new(layout::PAGE_SIZE, address_bits) }
    }

    /// Maps a range.
    ///
    /// # Safety
    ///
    /// As of [`boxlite_hv::Vm::map`].
    #[allow(unsafe_code)]
    pub(super) unsafe fn map(
        &self,
        gpa: u64,
        host: *mut u8,
        len: usize,
        perms: Perms,
    ) -> Result<()> {
        self.mappings.insert(gpa, host as u64, len, || {
            // SAFETY: the caller promises that the memory stays mapped until `unmap`; the range overlaps no other.
            unsafe { sys::map(host, gpa, len, perms) }
        })
    }

    /// Removes a mapping, exactly as it was made.
    pub(super) fn unmap(&self, gpa: u64, len: usize) -> Result<()> {
        self.mappings.remove(gpa, len, |()| sys::unmap(gpa, len))
    }
}
