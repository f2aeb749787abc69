//! The Hypervisor.framework backend, for Apple silicon with macOS 15 or later.
//!
//! ```text
//!   HvfVm ── lib.rs       one VM per process, interrupt lines, kicks
//!    ├── memory.rs        guest memory
//!    ├── gic.rs           the framework's interrupt controller
//!    └─ HvfVcpu ── vcpu.rs   hv_vcpu_run and its exits
//!         ├── kick.rs     exits on request
//!         ├── power.rs    vCPUs that are off
//!         ├── setup.rs    registers at creation and start
//!         └── state.rs    save and restore
//! ```
//!
//! What a guest does is decoded and answered by pure modules, which know neither the framework nor the host and are
//! tested everywhere:
//!
//! ```text
//!   decode     the syndrome of an exit ──► what the guest did
//!   exception  a fault ──► the registers of a guest that takes it
//!   sysreg     a trapped system register ──► its value; the ID registers that a guest sees
//!   psci       a firmware call ──► its answer, over all vCPUs
//!   timer      how long a waiting vCPU waits; the counter over a pause
//!   layout     what the framework demands of addresses
//! ```
//!
//! The crate compiles on every host, so that its tests run there. A program that uses [`HvfVm`] links on macOS, and
//! elsewhere only with another implementation of the framework's C functions: the unit tests have a scripted one. Only
//! `sys` depends on the platform: macOS has its own name for the counter, and aarch64 its own way to pass vectors.
//!
//! **Architecture Invariant:** every exit that a guest can cause has an answer, and none panics; exits that the
//! framework does not document are errors. All unsafe code is in `sys`, and in the mapping of memory.

#![deny(unsafe_code)]

pub mod decode;
pub mod exception;
mod gic;
mod kick;
pub mod layout;
mod memory;
mod power;
pub mod psci;
mod setup;
mod state;
mod sys;
pub mod sysreg;
pub mod timer;
mod vcpu;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use applevisor::error::HypervisorError;
use applevisor::vm::{GicEnabled, VirtualMachine, VirtualMachineConfig, VirtualMachineInstance};
use boxlite_hv::{BootState, Doorbell, Error, Interrupt, Perms, Result, Vm, VmConfig};

use self::kick::Kicks;
use self::memory::Memory;
use self::power::PowerController;
use self::psci::{Power, Psci, Start};
pub use self::state::{VcpuState, VmState};
use self::sys::{Cpu, failed};
use self::timer::Counter;
pub use self::vcpu::HvfVcpu;

/// A virtual machine on Hypervisor.framework.
#[derive(Debug)]
pub struct HvfVm {
    vcpus: u32,
    ipa_bits: u32,
    memory: Memory,
    shared: Arc<Shared>,
}

/// What a VM shares with its vCPUs: dropped with the last of them.
#[derive(Debug)]
struct Shared {
    kicks: Kicks,
    power: PowerController,
    counter: Mutex<Counter>,
    instance: Arc<Instance>,
}

/// The framework's VM, destroyed when this is dropped.
#[derive(Debug)]
struct Instance {
    _vm: VirtualMachineInstance<GicEnabled>,
    /// Dropped after the VM.
    _only: Only,
}

impl Shared {
    fn counter(&self) -> MutexGuard<'_, Counter> {
        self.counter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HvfVm {
    /// Creates a VM without memory. `nested` is not supported: the guest has no EL2.
    pub fn new(config: &VmConfig) -> Result<Self> {
        let only = Only::claim()?;
        let vcpus = config.vcpus;
        if vcpus > sys::max_vcpus()? {
            return Err(Error::Missing("that many vCPUs"));
        }
        let gic_config = gic::config(vcpus)?;
        let (vm_config, ipa_bits) = address_space(config)?;
        let vm = VirtualMachine::with_gic(vm_config, gic_config).map_err(not_created)?;
        Ok(Self {
            vcpus,
            ipa_bits,
            memory: Memory::new(ipa_bits),
            shared: Arc::new(Shared {
                kicks: Kicks::default(),
                power: PowerController::new(Psci::new((0..vcpus).map(layout::mpidr))),
                counter: Mutex::new(Counter::new(sys::counter())),
                instance: Arc::new(Instance { _vm: vm, _only: only }),
            }),
        })
    }
}

/// The framework's configuration of a VM, and how many bits its addresses have.
fn address_space(config: &VmConfig) -> Result<(VirtualMachineConfig, u32)> {
    let default = VirtualMachineConfig::get_default_ipa_size()
        .map_err(failed("hv_vm_config_get_default_ipa_size"))?;
    let max = VirtualMachineConfig::get_max_ipa_size()
        .map_err(failed("hv_vm_config_get_max_ipa_size"))?;
    let bits = layout::ipa_bits(config.address_bits(), default, max)?;
    let mut config = VirtualMachineConfig::new();
    if bits != default {
        config.set_ipa_size(bits).map_err(failed("hv_vm_config_set_ipa_size"))?;
    }
    Ok((config, bits))
}

/// The error of a VM that the framework did not create.
fn not_created(error: HypervisorError) -> Error {
    match error {
        HypervisorError::Denied => Error::Missing(
            "the entitlement com.apple.security.hypervisor: sign the executable with it (codesign --sign - --entitlements …)",
        ),
        HypervisorError::Unsupported => Error::Missing("hardware virtualization on this machine"),
        error => failed("hv_vm_create or hv_gic_create")(error),
    }
}

impl Vm for HvfVm {
    type Vcpu = HvfVcpu;
    type State = VmState;

    #[allow(unsafe_code)]
    unsafe fn map(&self, gpa: u64, host: *mut u8, len: usize, perms: Perms) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.memory.map(gpa, host, len, perms) }
    }

    fn unmap(&self, gpa: u64, len: usize) -> Result<()> {
        self.memory.unmap(gpa, len)
    }

    fn irq(&self, line: u32) -> Result<Interrupt> {
        gic::line(Arc::downgrade(&self.shared.instance), line)
    }

    /// The framework has none: the write exits, and the VMM rings.
    fn doorbell(&self, _gpa: u64) -> Option<Doorbell> {
        None
    }

    fn bind_vcpu(&self, id: u32, boot: &BootState) -> Result<HvfVcpu> {
        if id >= self.vcpus {
            return Err(Error::NoVcpu { id });
        }
        let cpu = Cpu::create()?;
        setup::vcpu(&cpu, id, self.ipa_bits)?;
        // A parked one is off already, or pending: another vCPU may have started it before it was bound.
        if let BootState::Start { entry, argument, .. } = *boot {
            let start = Start { entry, context: argument };
            self.shared.power.set_power(id, Power::Pending(start));
        }
        Ok(HvfVcpu::new(cpu, id, self.shared.clone()))
    }

    fn kick(&self, id: u32) -> Result<()> {
        self.shared.kicks.kick(id)?;
        self.shared.power.wake();
        Ok(())
    }

    fn save(&self) -> Result<VmState> {
        let counter = *self.shared.counter();
        VmState::save(&counter)
    }

    fn restore(&self, state: &VmState) -> Result<()> {
        *self.shared.counter() = state.restore()?;
        Ok(())
    }
}

/// The right to have a VM in this process: the framework allows one.
#[derive(Debug)]
struct Only;

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Only {
    fn claim() -> Result<Self> {
        match TAKEN.swap(true, Ordering::SeqCst) {
            false => Ok(Self),
            true => Err(Error::Call {
                call: "hv_vm_create",
                source: io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "this process has a VM, and Hypervisor.framework allows one per process",
                ),
            }),
        }
    }
}

impl Drop for Only {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::SeqCst);
    }
}

#[cfg(all(test, not(target_os = "macos")))]
mod tests;
