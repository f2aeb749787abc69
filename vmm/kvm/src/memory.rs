//! Guest memory: slots, mapped and unmapped.

use std::sync::{Mutex, MutexGuard, PoisonError};

use boxlite_hv::{Mappings, Perms, Result};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use crate::failed;

/// The memory slots of a VM.
#[derive(Debug)]
pub(crate) struct Memory {
    /// The mappings, each with its slot.
    mappings: Mappings<u32>,
    slots: Mutex<Slots>,
}

/// The numbers of freed slots, and the next unused number.
#[derive(Debug, Default)]
struct Slots {
    free: Vec<u32>,
    next: u32,
}

impl Memory {
    pub(crate) fn new(address_bits: u32) -> Self {
        // An arm64 host may have pages of 4, 16 or 64 KiB.
        let page = rustix::param::page_size() as u64;
        Self { mappings: Mappings::new(page, address_bits), slots: Mutex::default() }
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
        self.mappings.insert(gpa, host as u64, len, || {
            let mut slots = self.slots();
            let slot = slots.free.last().copied().unwrap_or(slots.next);
            let region = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: gpa,
                memory_size: len as u64,
                userspace_addr: host as u64,
                flags: match perms {
                    Perms::ReadExecute => KVM_MEM_READONLY,
                    Perms::ReadWriteExecute => 0,
                },
            };
            // SAFETY: the caller promises that the memory stays mapped until `unmap`; the range overlaps
            // no other slot.
            unsafe { fd.set_user_memory_region(region) }
                .map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
            if slots.free.pop().is_none() {
                slots.next += 1;
            }
            Ok(slot)
        })
    }

    /// Removes a mapping, exactly as it was made.
    pub(crate) fn unmap(&self, fd: &VmFd, gpa: u64, len: usize) -> Result<()> {
        self.mappings.remove(gpa, len, |&slot| {
            let deleted =
                kvm_userspace_memory_region { slot, guest_phys_addr: gpa, ..Default::default() };
            // SAFETY: size 0 deletes the slot; no memory is handed over.
            unsafe { fd.set_user_memory_region(deleted) }
                .map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
            self.slots().free.push(slot);
            Ok(())
        })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
