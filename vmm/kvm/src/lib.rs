//! The KVM backend (Linux kernel, Documentation/virt/kvm/api.rst).
//!
//! ```text
//!   KvmVm ── lib.rs      memory slots, irqchip, irqfd, ioeventfd, kicks
//!    └─ KvmVcpu ── vcpu.rs   KVM_RUN and its exits
//!         ├── x86_64/cpuid.rs   the processor features that the guest sees
//!         ├── x86_64/setup.rs   registers, MSRs and local APIC at boot
//!         └── x86_64/state.rs   save and restore
//! ```

#![cfg(target_os = "linux")]

mod kick;
mod vcpu;
mod x86_64;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use boxlite_hv::{BootState, Doorbell, Error, Interrupt, Perms, Result, Vm, VmConfig};
use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE,
    kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::kick::Kicks;
pub use self::vcpu::KvmVcpu;
pub use self::x86_64::state::{VcpuState, VmState};

/// Pages for Intel VMX's real-mode task state segment (three) and identity page table (one), which guest memory
/// must not overlap. Below the I/O APIC, at the end of the 32-bit gap.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

const PAGE_SIZE: u64 = 4096;

/// The capabilities that the VMM requires.
const REQUIRED: [(Cap, &str); 7] = [
    (Cap::Irqchip, "an in-kernel interrupt controller (KVM_CAP_IRQCHIP)"),
    (Cap::Irqfd, "interrupts by eventfd (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "doorbells by eventfd (KVM_CAP_IOEVENTFD)"),
    (Cap::UserMemory, "user memory regions (KVM_CAP_USER_MEMORY)"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT (Linux 4.13 or later)"),
    (Cap::ExtCpuid, "CPUID configuration (KVM_CAP_EXT_CPUID)"),
];

/// The error of a KVM ioctl.
fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |e| Error::Call { call, source: io::Error::from_raw_os_error(e.errno()) }
}

/// A virtual machine on KVM.
#[derive(Debug)]
pub struct KvmVm {
    fd: VmFd,
    kvm: Kvm,
    vcpus: u32,
    nested: bool,
    slots: Mutex<Slots>,
    kicks: Arc<Kicks>,
}

/// The memory slots in use, the freed slot numbers, and the next unused number.
#[derive(Debug, Default)]
struct Slots {
    by_gpa: BTreeMap<u64, kvm_userspace_memory_region>,
    free: Vec<u32>,
    next: u32,
}

impl KvmVm {
    /// Creates a VM without memory.
    pub fn new(config: &VmConfig) -> Result<Self> {
        Self::open(Path::new("/dev/kvm"), config)
    }

    fn open(device: &Path, &VmConfig { vcpus, nested, .. }: &VmConfig) -> Result<Self> {
        let device = std::ffi::CString::new(device.as_os_str().as_encoded_bytes())
            .map_err(|_| Error::Missing("a device path without NUL"))?;
        let kvm = Kvm::new_with_path(device).map_err(call("open /dev/kvm"))?;
        for (cap, what) in REQUIRED {
            if !kvm.check_extension(cap) {
                return Err(Error::Missing(what));
            }
        }
        if vcpus as usize > kvm.get_max_vcpus() {
            return Err(Error::Missing("that many vCPUs"));
        }
        let fd = retry_interrupted(|| kvm.create_vm()).map_err(call("KVM_CREATE_VM"))?;
        if !nested {
            disable_pmu(&fd)?;
        }
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(call("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
        // The timer for guests without the TSC deadline timer. KVM handles the speaker port, which some guests use
        // for calibration.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(call("KVM_CREATE_PIT2"))?;
        let (slots, kicks) = (Mutex::default(), Arc::new(Kicks::new()?));
        Ok(Self { fd, kvm, vcpus, nested, slots, kicks })
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;
    type State = VmState;

    unsafe fn map(&self, gpa: u64, host: *mut u8, len: usize, perms: Perms) -> Result<()> {
        let range = |reason| Error::Range { gpa, len, reason };
        let size = len as u64;
        if len == 0 || [gpa, host as u64, size].iter().any(|n| !n.is_multiple_of(PAGE_SIZE)) {
            return Err(range("not a whole number of pages"));
        }
        let end = gpa.checked_add(size).ok_or(range("wraps around"))?;
        let mut slots = self.slots();
        let below = slots.by_gpa.range(..end).next_back();
        if below.is_some_and(|(at, slot)| at + slot.memory_size > gpa) {
            return Err(range("overlaps another mapping"));
        }
        let slot = slots.free.last().copied().unwrap_or(slots.next);
        let region = kvm_userspace_memory_region {
            slot,
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
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        if slots.free.pop().is_none() {
            slots.next += 1;
        }
        slots.by_gpa.insert(gpa, region);
        Ok(())
    }

    fn unmap(&self, gpa: u64, len: usize) -> Result<()> {
        let mut slots = self.slots();
        let region = slots
            .by_gpa
            .get(&gpa)
            .filter(|region| region.memory_size == len as u64)
            .copied()
            .ok_or(Error::Range { gpa, len, reason: "no such mapping" })?;
        let gone = kvm_userspace_memory_region { memory_size: 0, ..region };
        // SAFETY: size 0 deletes the slot; no memory is handed over.
        unsafe { self.fd.set_user_memory_region(gone) }
            .map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        slots.by_gpa.remove(&gpa);
        slots.free.push(region.slot);
        Ok(())
    }

    fn irq(&self, line: u32) -> Result<Interrupt> {
        let event = eventfd()?;
        self.fd.register_irqfd(&event, line).map_err(call("KVM_IRQFD"))?;
        Ok(Interrupt::new(move || event.write(1)))
    }

    fn doorbell(&self, gpa: u64) -> Option<Doorbell> {
        let event = eventfd().ok()?;
        self.fd.register_ioevent(&event, &IoEventAddress::Mmio(gpa), NoDatamatch).ok()?;
        // SAFETY: the descriptor is open and given up by `event`. KVM holds its own reference.
        Some(Doorbell::from(unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) }))
    }

    fn bind_vcpu(&self, id: u32, boot: &BootState) -> Result<KvmVcpu> {
        let fd = retry_interrupted(|| self.fd.create_vcpu(id.into()))
            .map_err(call("KVM_CREATE_VCPU"))?;
        let shape = x86_64::cpuid::Shape { id, vcpus: self.vcpus, nested: self.nested };
        x86_64::setup::vcpu(&self.kvm, &fd, shape, boot)?;
        Ok(KvmVcpu::new(fd, id, self.kvm.get_msr_index_list().ok(), self.kicks.clone()))
    }

    fn kick(&self, id: u32) -> Result<()> {
        self.kicks.kick(id)
    }

    fn save(&self) -> Result<VmState> {
        VmState::save(&self.fd)
    }

    fn restore(&self, state: &VmState) -> Result<()> {
        state.restore(&self.fd)
    }
}

/// Disables the guest's performance counters where KVM can (Linux 5.18 or later); elsewhere only CPUID hides
/// them.
fn disable_pmu(fd: &VmFd) -> Result<()> {
    if fd.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into()) & KVM_PMU_CAP_DISABLE as i32 == 0 {
        return Ok(());
    }
    let mut cap = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
    cap.args[0] = KVM_PMU_CAP_DISABLE.into();
    fd.enable_cap(&cap).map_err(call("KVM_ENABLE_CAP (KVM_CAP_PMU_CAPABILITY)"))
}

fn eventfd() -> Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
        .map_err(|source| Error::Call { call: "eventfd", source })
}

/// Some calls are interrupted by signals where many processes start at once.
fn retry_interrupted<T>(
    mut call: impl FnMut() -> std::result::Result<T, kvm_ioctls::Error>,
) -> std::result::Result<T, kvm_ioctls::Error> {
    loop {
        match call() {
            Err(e) if e.errno() == libc::EINTR => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;
