//! Features and registers of a vCPU at boot.

use std::mem::offset_of;

use boxlite_hv::{BootState, Result};
use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, KVM_REG_ARM_CORE,
    KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, kvm_mp_state, kvm_regs, kvm_vcpu_init,
    user_pt_regs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::{failed, retry_interrupted};

/// EL1 with its own stack pointer, debug exceptions, SErrors, IRQs and FIQs masked.
const PSTATE_BOOT: u64 = 0x3c5;

/// MPIDR_EL1 (op0 3, op1 0, CRn 0, CRm 0, op2 5).
const MPIDR_EL1: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | 0xc005;

/// The ID of a general register, by its offset in `kvm_regs`.
const fn core(offset: usize) -> u64 {
    let index = (offset_of!(kvm_regs, regs) + offset) / size_of::<u32>();
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | index as u64
}

/// The features of all vCPUs of a VM: of the host's processor, with pointer authentication if it has that. They begin
/// powered off.
pub(super) fn features(kvm: &Kvm, vm: &VmFd) -> Result<kvm_vcpu_init> {
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).map_err(failed("KVM_ARM_PREFERRED_TARGET"))?;
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2 | 1 << KVM_ARM_VCPU_POWER_OFF;
    // KVM takes both or none.
    if kvm.check_extension(Cap::ArmPtrAuthAddress) && kvm.check_extension(Cap::ArmPtrAuthGeneric) {
        init.features[0] |= 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
    }
    Ok(init)
}

/// Creates a vCPU that is powered off.
pub(super) fn create(vm: &VmFd, id: u32, init: &kvm_vcpu_init) -> Result<VcpuFd> {
    let fd = retry_interrupted(|| vm.create_vcpu(id.into())).map_err(failed("KVM_CREATE_VCPU"))?;
    fd.vcpu_init(init).map_err(failed("KVM_ARM_VCPU_INIT"))?;
    Ok(fd)
}

/// A vCPU's affinity, as attributes of the interrupt controller have it: Aff3 to Aff0, a byte each.
pub(super) fn affinity(fd: &VcpuFd) -> Result<u32> {
    let mut mpidr = [0; 8];
    fd.get_one_reg(MPIDR_EL1, &mut mpidr).map_err(failed("KVM_GET_ONE_REG (MPIDR_EL1)"))?;
    let mpidr = u64::from_le_bytes(mpidr);
    Ok(((mpidr >> 8) & 0xff00_0000) as u32 | (mpidr & 0x00ff_ffff) as u32)
}

/// Puts a vCPU into the state it boots from (Linux, Documentation/arch/arm64/booting.rst).
pub(super) fn vcpu(fd: &VcpuFd, boot: &BootState) -> Result<()> {
    let mp_state = match *boot {
        BootState::Start { entry, argument, page_table: _ } => {
            let general = offset_of!(user_pt_regs, regs);
            for (offset, value) in [
                (general, argument),
                (general + 8, 0),
                (general + 16, 0),
                (general + 24, 0),
                (offset_of!(user_pt_regs, pc), entry),
                (offset_of!(user_pt_regs, pstate), PSTATE_BOOT),
            ] {
                fd.set_one_reg(core(offset), &u64::to_le_bytes(value))
                    .map_err(failed("KVM_SET_ONE_REG"))?;
            }
            KVM_MP_STATE_RUNNABLE
        }
        BootState::Parked => KVM_MP_STATE_STOPPED,
    };
    fd.set_mp_state(kvm_mp_state { mp_state }).map_err(failed("KVM_SET_MP_STATE"))
}
