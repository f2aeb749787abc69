//! Guest memory: KVM's memory slots, in the framework's pages.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Mutex;

use applevisor_sys::{
    HV_MEMORY_EXEC, HV_MEMORY_READ, HV_MEMORY_WRITE, PAGE_SIZE, hv_error_t, hv_memory_flags_t,
    hv_return_t,
};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use crate::sys::{Result, code, kvm, lock, retry_busy};
use crate::vm;

/// The memory of a VM.
#[derive(Debug)]
pub(crate) struct Memory {
    ipa_bits: u32,
    slots: Mutex<Slots>,
}

/// The slots in use by their first addresses, and the next number of one.
#[derive(Debug, Default)]
struct Slots {
    by_gpa: BTreeMap<u64, kvm_userspace_memory_region>,
    free: Vec<u32>,
    next: u32,
}

/// KVM's flags for the framework's permissions. KVM cannot refuse instruction fetches.
fn slot_flags(flags: hv_memory_flags_t) -> Result<u32> {
    match flags & !HV_MEMORY_EXEC {
        HV_MEMORY_READ => Ok(KVM_MEM_READONLY),
        both if both == HV_MEMORY_READ | HV_MEMORY_WRITE => Ok(0),
        _ => Err(hv_error_t::HV_UNSUPPORTED),
    }
}

/// Gives KVM a slot, or takes it away.
///
/// # Safety
///
/// The host's memory of the slot stays mapped as long as the slot exists.
unsafe fn set(vm: &VmFd, region: kvm_userspace_memory_region) -> Result<()> {
    // SAFETY: the caller's promise; slots do not overlap.
    retry_busy(|| unsafe { vm.set_user_memory_region(region) })
        .map_err(kvm("KVM_SET_USER_MEMORY_REGION"))
}

impl Memory {
    pub(crate) fn new(ipa_bits: u32) -> Self {
        Self { ipa_bits, slots: Mutex::default() }
    }

    /// Maps a range.
    ///
    /// # Safety
    ///
    /// The host's memory stays mapped until the range is unmapped or the VM is destroyed.
    unsafe fn map(
        &self,
        vm: &VmFd,
        host: u64,
        gpa: u64,
        size: usize,
        flags: hv_memory_flags_t,
    ) -> Result<()> {
        let end = self.end(host, gpa, size)?;
        let mut slots = lock(&self.slots);
        let below = slots.by_gpa.range(..end).next_back();
        if below.is_some_and(|(at, slot)| at + slot.memory_size > gpa) {
            return Err(hv_error_t::HV_ERROR);
        }
        let region = kvm_userspace_memory_region {
            slot: slots.free.last().copied().unwrap_or(slots.next),
            flags: slot_flags(flags)?,
            guest_phys_addr: gpa,
            memory_size: size as u64,
            userspace_addr: host,
        };
        // SAFETY: the caller's promise.
        unsafe { set(vm, region) }?;
        if slots.free.pop().is_none() {
            slots.next += 1;
        }
        slots.by_gpa.insert(gpa, region);
        Ok(())
    }

    /// The end of a range that may be mapped.
    fn end(&self, host: u64, gpa: u64, size: usize) -> Result<u64> {
        let aligned = |n: u64| n.is_multiple_of(PAGE_SIZE as u64);
        let last = (size as u64).checked_sub(1).and_then(|size| gpa.checked_add(size));
        match last {
            Some(last)
                if [host, gpa, size as u64].into_iter().all(aligned)
                    && last >> self.ipa_bits == 0 =>
            {
                Ok(last + 1)
            }
            _ => Err(hv_error_t::HV_BAD_ARGUMENT),
        }
    }

    /// Removes a mapping, which was made as a whole.
    fn unmap(&self, vm: &VmFd, gpa: u64, size: usize) -> Result<()> {
        let mut slots = lock(&self.slots);
        let region = slots.whole(gpa, size)?;
        // SAFETY: size 0 deletes the slot.
        unsafe { set(vm, kvm_userspace_memory_region { memory_size: 0, ..region }) }?;
        slots.by_gpa.remove(&gpa);
        slots.free.push(region.slot);
        Ok(())
    }

    /// Changes permissions. KVM makes no slot read-only that was not, so that it is deleted and added again: the caller
    /// makes sure that no vCPU runs.
    fn protect(&self, vm: &VmFd, gpa: u64, size: usize, flags: hv_memory_flags_t) -> Result<()> {
        let mut slots = lock(&self.slots);
        let region = slots.whole(gpa, size)?;
        let changed = kvm_userspace_memory_region { flags: slot_flags(flags)?, ..region };
        if changed.flags != region.flags {
            // SAFETY: size 0 deletes the slot.
            unsafe { set(vm, kvm_userspace_memory_region { memory_size: 0, ..region }) }?;
            // SAFETY: the promise for the first mapping still holds.
            unsafe { set(vm, changed) }?;
            slots.by_gpa.insert(gpa, changed);
        }
        Ok(())
    }

    /// Whether there is memory at an address.
    pub(crate) fn is_mapped(&self, gpa: u64) -> bool {
        lock(&self.slots).host(gpa, 1).is_some()
    }

    /// Reads 8 bytes, which are aligned.
    pub(crate) fn read_u64(&self, gpa: u64) -> Option<u64> {
        let host = lock(&self.slots).host(gpa, 8)?;
        // SAFETY: mapped, as the caller of `map` has promised; aligned like the guest's address; volatile, because the
        // guest may write it.
        gpa.is_multiple_of(8).then(|| unsafe { (host as *const u64).read_volatile() })
    }

    /// Reads 4 bytes, which are aligned.
    pub(crate) fn read_u32(&self, gpa: u64) -> Option<u32> {
        let host = lock(&self.slots).host(gpa, 4)?;
        // SAFETY: as in `read_u64`.
        gpa.is_multiple_of(4).then(|| unsafe { (host as *const u32).read_volatile() })
    }
}

impl Slots {
    fn whole(&self, gpa: u64, size: usize) -> Result<kvm_userspace_memory_region> {
        let region = self.by_gpa.get(&gpa).filter(|region| region.memory_size == size as u64);
        region.copied().ok_or(hv_error_t::HV_BAD_ARGUMENT)
    }

    /// The host's address of `size` bytes of the guest.
    fn host(&self, gpa: u64, size: u64) -> Option<u64> {
        let (at, region) = self.by_gpa.range(..=gpa).next_back()?;
        let offset = gpa - at;
        (offset.checked_add(size)? <= region.memory_size).then(|| region.userspace_addr + offset)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_vm_map(
    host: *const c_void,
    gpa: u64,
    size: usize,
    flags: hv_memory_flags_t,
) -> hv_return_t {
    code(vm::current().and_then(|vm| {
        // SAFETY: the caller's promise to the framework.
        unsafe { vm.memory.map(&vm.fd, host as u64, gpa, size, flags) }
    }))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_unmap(gpa: u64, size: usize) -> hv_return_t {
    code(vm::current().and_then(|vm| vm.memory.unmap(&vm.fd, gpa, size)))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_protect(gpa: u64, size: usize, flags: hv_memory_flags_t) -> hv_return_t {
    code(vm::current().and_then(|vm| match vm.is_running() {
        true => Err(hv_error_t::HV_BUSY),
        false => vm.memory.protect(&vm.fd, gpa, size, flags),
    }))
}
