//! Guest memory: slots, mapped and unmapped.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use boxlite_hv::{Error, Perms, Result};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use crate::call;

/// The memory slots of a VM.
#[derive(Debug)]
pub(crate) struct Memory {
    /// The host's page size: an arm64 host may have 4, 16 or 64 KiB.
    page: u64,
    slots: Mutex<Slots>,
}

/// The memory slots in use, the freed slot numbers, and the next unused number.
#[derive(Debug, Default)]
struct Slots {
    by_gpa: BTreeMap<u64, kvm_userspace_memory_region>,
    free: Vec<u32>,
    next: u32,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self { page: rustix::param::page_size() as u64, slots: Mutex::default() }
    }

    /// Maps a range.
    ///
    /// # Safety
    ///
    /// As of [`boxlite_hv::Vm::map`].
    pub(crate) unsafe fn map(
        &self,
        fd: &VmFd,
        gpa: u64,
        host: *mut u8,
        len: usize,
        perms: Perms,
    ) -> Result<()> {
        let size = self.check(gpa, host, len)?;
        let mut slots = self.slots();
        if slots.overlaps(gpa, size) {
            return Err(Error::Range { gpa, len, reason: "overlaps another mapping" });
        }
        let region = kvm_userspace_memory_region {
            slot: slots.free.last().copied().unwrap_or(slots.next),
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: host as u64,
            flags: match perms {
                Perms::ReadExecute => KVM_MEM_READONLY,
                Perms::ReadWriteExecute => 0,
            },
        };
        // SAFETY: the caller promises that the memory stays mapped until `unmap`; the range overlaps
        // no other slot.
        unsafe { fd.set_user_memory_region(region) }.map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        if slots.free.pop().is_none() {
            slots.next += 1;
        }
        slots.by_gpa.insert(gpa, region);
        Ok(())
    }

    /// Removes a mapping, exactly as it was made.
    pub(crate) fn unmap(&self, fd: &VmFd, gpa: u64, len: usize) -> Result<()> {
        let mut slots = self.slots();
        let region = slots
            .by_gpa
            .get(&gpa)
            .filter(|region| region.memory_size == len as u64)
            .copied()
            .ok_or(Error::Range { gpa, len, reason: "no such mapping" })?;
        let gone = kvm_userspace_memory_region { memory_size: 0, ..region };
        // SAFETY: size 0 deletes the slot; no memory is handed over.
        unsafe { fd.set_user_memory_region(gone) }.map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        slots.by_gpa.remove(&gpa);
        slots.free.push(region.slot);
        Ok(())
    }

    /// The size of a range, if it consists of whole pages and does not wrap.
    fn check(&self, gpa: u64, host: *mut u8, len: usize) -> Result<u64> {
        let range = |reason| Error::Range { gpa, len, reason };
        let size = len as u64;
        if len == 0 || [gpa, host as u64, size].iter().any(|n| !n.is_multiple_of(self.page)) {
            return Err(range("not a whole number of pages"));
        }
        gpa.checked_add(size).ok_or(range("wraps around"))?;
        Ok(size)
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    /// Whether a range, which does not wrap, shares an address with a slot.
    fn overlaps(&self, gpa: u64, size: u64) -> bool {
        let below = self.by_gpa.range(..gpa + size).next_back();
        below.is_some_and(|(at, slot)| at + slot.memory_size > gpa)
    }
}
