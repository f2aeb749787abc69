//! The KVM backend (Linux kernel, Documentation/virt/kvm/api.rst).
//!
//! ```text
//!   KvmVm ── lib.rs           a VM: memory, interrupt lines, doorbells, vCPUs
//!    ├── memory.rs            memory slots
//!    ├── kick.rs              makes a vCPU leave the guest
//!    ├── x86_64/, aarch64/    mod.rs: `Platform`, what the architecture adds to a VM
//!    │                        setup.rs: a vCPU's registers at boot
//!    │                        state.rs: save and restore
//!    │                        x86_64/cpuid.rs: the processor features that the guest sees
//!    │                        aarch64/gic.rs: the interrupt controller
//!    └── KvmVcpu ── vcpu.rs   KVM_RUN and its exits
//! ```
//!
//! Both architectures offer the same names, `Platform` and its methods, `VmState` and `VcpuState`; no other module
//! depends on the architecture.

#![cfg(target_os = "linux")]

mod kick;
mod memory;
mod vcpu;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use self::aarch64 as arch;
#[cfg(target_arch = "x86_64")]
use self::x86_64 as arch;

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use boxlite_hv::{BootState, Doorbell, Error, Interrupt, Perms, Result, Vm, VmConfig};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::arch::Platform;
pub use self::arch::{VcpuState, VmState};
use self::kick::Kicks;
use self::memory::Memory;
pub use self::vcpu::KvmVcpu;

/// The capabilities that the VMM requires on every architecture. `Platform` requires more.
const REQUIRED: [(Cap, &str); 4] = [
    (Cap::Irqfd, "interrupts by eventfd (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "doorbells by eventfd (KVM_CAP_IOEVENTFD)"),
    (Cap::UserMemory, "user memory regions (KVM_CAP_USER_MEMORY)"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT (Linux 4.13 or later)"),
];

/// A virtual machine on KVM.
#[derive(Debug)]
pub struct KvmVm {
    fd: VmFd,
    vcpus: u32,
    platform: Arc<Platform>,
    memory: Memory,
    kicks: Arc<Kicks>,
}

impl KvmVm {
    /// Creates a VM without memory.
    pub fn new(config: &VmConfig) -> Result<Self> {
        Self::open(Path::new("/dev/kvm"), config)
    }

    fn open(device: &Path, config: &VmConfig) -> Result<Self> {
        let device = std::ffi::CString::new(device.as_os_str().as_encoded_bytes())
            .map_err(|_| Error::Missing("a device path without NUL"))?;
        let kvm = Kvm::new_with_path(device).map_err(failed("open /dev/kvm"))?;
        for (cap, what) in REQUIRED.iter().chain(&Platform::REQUIRED) {
            if !kvm.check_extension(*cap) {
                return Err(Error::Missing(what));
            }
        }
        if config.vcpus as usize > kvm.get_max_vcpus() {
            return Err(Error::Missing("that many vCPUs"));
        }
        let vm_type = Platform::vm_type(&kvm, config)?;
        let fd = retry_interrupted(|| kvm.create_vm_with_type(vm_type))
            .map_err(failed("KVM_CREATE_VM"))?;
        let platform = Arc::new(Platform::new(kvm, &fd, config)?);
        Ok(Self {
            fd,
            vcpus: config.vcpus,
            platform,
            memory: Memory::new(config.address_bits()),
            kicks: Arc::new(Kicks::new()?),
        })
    }
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;
    type State = VmState;

    unsafe fn map(&self, gpa: u64, host: *mut u8, len: usize, perms: Perms) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.memory.map(&self.fd, gpa, host, len, perms) }
    }

    fn unmap(&self, gpa: u64, len: usize) -> Result<()> {
        self.memory.unmap(&self.fd, gpa, len)
    }

    fn irq(&self, line: u32) -> Result<Interrupt> {
        if line >= Platform::LINES {
            return Err(Error::NoLine { line });
        }
        let event = eventfd()?;
        self.fd.register_irqfd(&event, line).map_err(failed("KVM_IRQFD"))?;
        Ok(Interrupt::new(move || event.write(1)))
    }

    fn doorbell(&self, gpa: u64) -> Option<Doorbell> {
        let event = eventfd().ok()?;
        self.fd.register_ioevent(&event, &IoEventAddress::Mmio(gpa), NoDatamatch).ok()?;
        // SAFETY: the descriptor is open and given up by `event`. KVM holds its own reference.
        Some(Doorbell::from(unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) }))
    }

    fn bind_vcpu(&self, id: u32, boot: &BootState) -> Result<KvmVcpu> {
        if id >= self.vcpus {
            return Err(Error::NoVcpu { id });
        }
        let fd = self.platform.vcpu(&self.fd, id, boot)?;
        Ok(KvmVcpu::new(fd, id, self.platform.clone(), self.kicks.clone()))
    }

    fn kick(&self, id: u32) -> Result<()> {
        self.kicks.kick(id)
    }

    fn save(&self) -> Result<VmState> {
        self.platform.save(&self.fd)
    }

    fn restore(&self, state: &VmState) -> Result<()> {
        self.platform.restore(&self.fd, state)
    }
}

/// The error of a KVM ioctl.
fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |e| Error::Call { call, source: io::Error::from_raw_os_error(e.errno()) }
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
