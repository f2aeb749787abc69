//! KVM's names of the framework's registers, and what the registers of a new vCPU hold.

use std::mem::offset_of;

use applevisor_sys::{hv_error_t, hv_reg_t as Reg, hv_simd_fp_reg_t, hv_sys_reg_t as SysReg};
use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U32, KVM_REG_SIZE_U64,
    KVM_REG_SIZE_U128, kvm_regs, user_fpsimd_state, user_pt_regs,
};
use kvm_ioctls::VcpuFd;

use crate::sys::{Result, of_errno};

const fn core(size: u64, offset: usize) -> u64 {
    KVM_REG_ARM64 | size | KVM_REG_ARM_CORE as u64 | (offset / size_of::<u32>()) as u64
}

const REGS: usize = offset_of!(kvm_regs, regs);
const FP: usize = offset_of!(kvm_regs, fp_regs);

/// CNTV_CVAL_EL0, which KVM calls by the name of CNTVCT_EL0.
const CNTV_CVAL: u64 = 0xdf02;

/// KVM's name of a general register, PC, FPCR, FPSR or CPSR.
pub(crate) fn general(reg: Reg) -> u64 {
    let (size, offset) = match reg {
        Reg::PC => (KVM_REG_SIZE_U64, REGS + offset_of!(user_pt_regs, pc)),
        Reg::CPSR => (KVM_REG_SIZE_U64, REGS + offset_of!(user_pt_regs, pstate)),
        Reg::FPCR => (KVM_REG_SIZE_U32, FP + offset_of!(user_fpsimd_state, fpcr)),
        Reg::FPSR => (KVM_REG_SIZE_U32, FP + offset_of!(user_fpsimd_state, fpsr)),
        // X0 to X30 are 0 to 30.
        x => (KVM_REG_SIZE_U64, REGS + offset_of!(user_pt_regs, regs) + 8 * x as usize),
    };
    core(size, offset)
}

/// KVM's name of general register X0 to X30.
pub(crate) fn x(number: u32) -> u64 {
    core(KVM_REG_SIZE_U64, REGS + offset_of!(user_pt_regs, regs) + 8 * number as usize)
}

/// KVM's name of a vector register.
pub(crate) fn vector(reg: hv_simd_fp_reg_t) -> u64 {
    core(KVM_REG_SIZE_U128, FP + offset_of!(user_fpsimd_state, vregs) + 16 * reg as usize)
}

/// KVM's name of a system register, if it is one that the framework serves to guests without EL2.
pub(crate) fn system(reg: SysReg) -> Result<u64> {
    let of_core = |offset| Ok(core(KVM_REG_SIZE_U64, offset));
    let of_system =
        |reg: u64| Ok(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | reg);
    match reg {
        SysReg::SP_EL0 => of_core(REGS + offset_of!(user_pt_regs, sp)),
        SysReg::SP_EL1 => of_core(offset_of!(kvm_regs, sp_el1)),
        SysReg::ELR_EL1 => of_core(offset_of!(kvm_regs, elr_el1)),
        SysReg::SPSR_EL1 => of_core(offset_of!(kvm_regs, spsr)),
        SysReg::CNTV_CVAL_EL0 => of_system(CNTV_CVAL),
        SysReg::CNTP_TVAL_EL0 => Err(hv_error_t::HV_UNSUPPORTED),
        reg => of_system(reg as u64),
    }
}

/// Reads a register of up to 64 bits.
pub(crate) fn get(fd: &VcpuFd, id: u64) -> Result<u64> {
    let mut value = [0; 8];
    fd.get_one_reg(id, &mut value).map_err(|e| of_errno(e.errno()))?;
    Ok(u64::from_le_bytes(value))
}

/// Writes a register of up to 64 bits.
pub(crate) fn set(fd: &VcpuFd, id: u64, value: u64) -> Result<()> {
    fd.set_one_reg(id, &value.to_le_bytes()[..kvm_ioctls::reg_size(id)])
        .map(drop)
        .map_err(|e| of_errno(e.errno()))
}

/// What a general register of a new vCPU holds.
const POISON: u64 = 0xdead_beef_dead_beef;

/// System registers that hold a senseless value in a new vCPU: whoever starts it sets them, or its guest does before
/// they matter.
const POISONED: [(SysReg, u64); 20] = [
    // The MMU and the caches are on, and the rest of the bits is not what the boot protocol wants.
    (SysReg::SCTLR_EL1, 0x1005),
    (SysReg::TTBR0_EL1, 0xdead_b000),
    (SysReg::TTBR1_EL1, 0xdead_b000),
    (SysReg::TCR_EL1, 0x19),
    (SysReg::MAIR_EL1, POISON),
    (SysReg::VBAR_EL1, 0xdead_b800),
    (SysReg::ELR_EL1, POISON),
    (SysReg::ESR_EL1, 0xdead_beef),
    (SysReg::FAR_EL1, POISON),
    (SysReg::CONTEXTIDR_EL1, 0xdead_beef),
    (SysReg::SP_EL0, POISON),
    (SysReg::SP_EL1, POISON),
    (SysReg::TPIDR_EL0, POISON),
    (SysReg::TPIDRRO_EL0, POISON),
    (SysReg::TPIDR_EL1, POISON),
    (SysReg::CNTKCTL_EL1, 0x3ff),
    // The timers fire.
    (SysReg::CNTP_CVAL_EL0, 0),
    (SysReg::CNTP_CTL_EL0, 1),
    (SysReg::CNTV_CVAL_EL0, 0),
    (SysReg::CNTV_CTL_EL0, 1),
];

/// Gives the registers of a new vCPU values that nobody can work with by accident.
pub(crate) fn poison(fd: &VcpuFd) -> Result<()> {
    for number in 0..31 {
        set(fd, x(number), POISON)?;
    }
    set(fd, general(Reg::PC), 0xdead_beec)?;
    for (reg, value) in POISONED {
        set(fd, system(reg)?, value)?;
    }
    for number in 0..32 {
        let id = core(KVM_REG_SIZE_U128, FP + offset_of!(user_fpsimd_state, vregs) + 16 * number);
        fd.set_one_reg(id, &[0xa5; 16]).map_err(|e| of_errno(e.errno()))?;
    }
    Ok(())
}
