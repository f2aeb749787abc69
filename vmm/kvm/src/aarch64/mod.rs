//! What aarch64 adds to a VM on KVM: the interrupt controller, which wants all vCPUs before it, and the state of a
//! vCPU.
//!
//! Guests have no EL2, even with [`VmConfig::nested`]: a kernel at EL2 calls PSCI by SMC, which its device tree would have
//! to say, and KVM can do it only since Linux 6.16 on few processors. They have no performance counters either, as on
//! Hypervisor.framework; SVE is left out, as saved states would depend on the host's vector length.

mod gic;
mod setup;
mod state;

use std::sync::{Mutex, PoisonError};

use boxlite_hv::{BootState, Error, Result, VmConfig};
use kvm_bindings::{
    KVM_CAP_ARM_INJECT_EXT_DABT, KVM_CAP_ARM_NISV_TO_USER, KVM_EXIT_ARM_NISV, kvm_enable_cap,
    kvm_run, kvm_vcpu_events,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use self::gic::Gic;
pub use self::state::{VcpuState, VmState};
use crate::failed;

/// The intermediate physical address size of a KVM that has no other, in bits.
const DEFAULT_IPA_BITS: u32 = 40;

/// The architecture's part of a VM.
#[derive(Debug)]
pub(crate) struct Platform {
    /// The vCPUs that are not bound yet, by ID.
    vcpus: Mutex<Vec<Option<VcpuFd>>>,
    gic: Gic,
}

impl Platform {
    /// The capabilities that this architecture requires.
    pub(crate) const REQUIRED: [(Cap, &str); 5] = [
        (Cap::ArmPsci02, "PSCI 0.2 (KVM_CAP_ARM_PSCI_0_2)"),
        (Cap::DeviceCtrl, "an in-kernel interrupt controller (KVM_CAP_DEVICE_CTRL)"),
        (Cap::OneReg, "access to registers (KVM_CAP_ONE_REG)"),
        (Cap::MpState, "KVM_CAP_MP_STATE"),
        (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS (Linux 4.19 or later)"),
    ];

    /// The number of interrupt lines: the shared peripheral interrupts, which are KVM's GSIs.
    pub(crate) const LINES: u32 = boxlite_hv::gic::SPIS;

    /// The argument of KVM_CREATE_VM: the intermediate physical address size.
    pub(crate) fn vm_type(kvm: &Kvm, config: &VmConfig) -> Result<u64> {
        let bits = config.address_bits();
        let limit = match kvm.check_extension(Cap::ArmVmIPASize) {
            true => kvm.get_host_ipa_limit().unsigned_abs(),
            false => DEFAULT_IPA_BITS,
        };
        if bits > limit {
            return Err(Error::Missing(
                "an address space for that much memory (KVM_CAP_ARM_VM_IPA_SIZE)",
            ));
        }
        // Without the capability, 0 is the only type.
        Ok(if kvm.check_extension(Cap::ArmVmIPASize) { bits.into() } else { 0 })
    }

    /// Configures a new VM and creates its vCPUs and interrupt controller, in the order that KVM wants: interrupt lines
    /// need an initialized controller, and that needs its vCPUs.
    pub(crate) fn new(kvm: Kvm, vm: &VmFd, config: &VmConfig) -> Result<Self> {
        exit_without_syndrome(vm)?;
        let init = setup::features(&kvm, vm)?;
        let vcpus =
            (0..config.vcpus).map(|id| setup::create(vm, id, &init)).collect::<Result<Vec<_>>>()?;
        let affinities = vcpus.iter().map(setup::affinity).collect::<Result<Vec<_>>>()?;
        let gic = Gic::new(vm, affinities)?;
        Ok(Self { vcpus: Mutex::new(vcpus.into_iter().map(Some).collect()), gic })
    }

    /// Hands out a vCPU in the state it boots from.
    pub(crate) fn vcpu(&self, _: &VmFd, id: u32, boot: &BootState) -> Result<VcpuFd> {
        let mut vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = vcpus.get_mut(id as usize).and_then(Option::take);
        let fd = fd.ok_or(Error::NoVcpu { id })?;
        setup::vcpu(&fd, boot)?;
        Ok(fd)
    }

    /// Handles an exit that only this architecture has. The guest runs on afterwards; the error says why it cannot.
    ///
    /// # Safety
    ///
    /// `run` is the mapped page of the vCPU, and holds its last exit.
    pub(crate) unsafe fn on_exit(
        fd: &VcpuFd,
        run: *const kvm_run,
    ) -> std::result::Result<(), String> {
        // SAFETY: the page is mapped.
        match unsafe { (*run).exit_reason } {
            KVM_EXIT_ARM_NISV => inject_external_abort(fd)
                .map_err(|e| format!("an access that KVM cannot decode: {e}")),
            other => Err(format!("unexpected exit {other}")),
        }
    }

    /// Tells a vCPU's guest that the VM was paused: there is no way to. The guest's counter went on meanwhile, as it
    /// does on x86_64, so the guest takes the pause for a moment in which its vCPUs got no time. To stop the counter
    /// instead, KVM needs all vCPUs to be outside the guest, which those that resumed first are not.
    pub(crate) fn resumed(_: &VcpuFd) {}

    /// The state of the VM.
    pub(crate) fn save(&self, _: &VmFd) -> Result<VmState> {
        Ok(VmState { gic: self.gic.save()? })
    }

    /// Loads the state of the VM.
    pub(crate) fn restore(&self, _: &VmFd, state: &VmState) -> Result<()> {
        self.gic.restore(&state.gic)
    }

    /// The state of a vCPU that has no exit to complete.
    pub(crate) fn save_vcpu(&self, fd: &VcpuFd) -> Result<VcpuState> {
        VcpuState::save(fd)
    }

    /// Loads the state of a vCPU.
    pub(crate) fn restore_vcpu(&self, fd: &VcpuFd, state: &VcpuState) -> Result<()> {
        state.restore(fd)
    }
}

/// Makes an access to a device exit if the processor does not describe its instruction (a pair, a write-back of the
/// address); without this, it ends the VM.
fn exit_without_syndrome(vm: &VmFd) -> Result<()> {
    if vm.check_extension_raw(KVM_CAP_ARM_INJECT_EXT_DABT.into()) <= 0 {
        return Err(Error::Missing("KVM_CAP_ARM_INJECT_EXT_DABT (Linux 5.5 or later)"));
    }
    let cap = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() };
    vm.enable_cap(&cap).map_err(failed("KVM_ENABLE_CAP (KVM_CAP_ARM_NISV_TO_USER)"))
}

/// The guest gets an external abort at the access of the last exit.
fn inject_external_abort(fd: &VcpuFd) -> Result<()> {
    let mut events = kvm_vcpu_events::default();
    events.exception.ext_dabt_pending = 1;
    fd.set_vcpu_events(&events).map_err(failed("KVM_SET_VCPU_EVENTS"))
}
