//! Guest memory: ranges, mapped and unmapped.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use boxlite_hv::{Error, Perms, Result};

use crate::{layout, sys};

/// The mappings of a VM.
#[derive(Debug)]
pub(super) struct Memory {
    /// The size of the VM's addresses.
    ipa_bits: u32,
    /// The lengths of the mappings, by their first addresses.
    by_gpa: Mutex<BTreeMap<u64, usize>>,
}

impl Memory {
    pub(super) fn new(ipa_bits: u32) -> Self {
        Self { ipa_bits, by_gpa: Mutex::default() }
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
        let end = layout::check_range(gpa, host as u64, len, self.ipa_bits)?;
        let mut by_gpa = self.by_gpa();
        let below = by_gpa.range(..end).next_back();
        if below.is_some_and(|(at, len)| at + *len as u64 > gpa) {
            return Err(Error::Range { gpa, len, reason: "overlaps another mapping" });
        }
        // SAFETY: the caller promises that the memory stays mapped until `unmap`; the range overlaps no other.
        unsafe { sys::map(host, gpa, len, perms) }?;
        by_gpa.insert(gpa, len);
        Ok(())
    }

    /// Removes a mapping, exactly as it was made.
    pub(super) fn unmap(&self, gpa: u64, len: usize) -> Result<()> {
        let mut by_gpa = self.by_gpa();
        if by_gpa.get(&gpa) != Some(&len) {
            return Err(Error::Range { gpa, len, reason: "no such mapping" });
        }
        sys::unmap(gpa, len)?;
        by_gpa.remove(&gpa);
        Ok(())
    }

    fn by_gpa(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.by_gpa.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
