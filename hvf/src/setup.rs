//! The registers of a vCPU at its creation and at its start.

use applevisor_sys::{hv_reg_t as Reg, hv_sys_reg_t as SysReg};
use boxlite_hv::{Error, Result};

use crate::exception::pstate;
use crate::psci::Start;
use crate::sys::Cpu;
use crate::{layout, sysreg};

/// SCTLR_EL1 at a start: MMU and caches off, little endian, stack alignment checks, and the bits that are one where
/// their features are missing.
const SCTLR: u64 = 0x00c5_0078;

/// PSTATE at a start: EL1 with its own stack, all exceptions masked.
const PSTATE: u64 = pstate::DAIF | pstate::EL1H;

/// The general registers.
pub(super) const GENERAL: [Reg; 31] = {
    use Reg::*;
    [
        X0, X1, X2, X3, X4, X5, X6, X7, X8, X9, X10, X11, X12, X13, X14, X15, X16, X17, X18, X19,
        X20, X21, X22, X23, X24, X25, X26, X27, X28, X29, X30,
    ]
};

/// The registers of [`sysreg::ID_REGISTERS`], in their order.
const ID_REGISTERS: [SysReg; 6] = [
    SysReg::ID_AA64PFR0_EL1,
    SysReg::ID_AA64PFR1_EL1,
    SysReg::ID_AA64DFR0_EL1,
    SysReg::ID_AA64MMFR0_EL1,
    SysReg::ID_AA64MMFR1_EL1,
    SysReg::ID_AA64MMFR2_EL1,
];

/// Prepares a new vCPU. The affinity comes first: the interrupt controller finds vCPUs by it.
pub(super) fn vcpu(cpu: &Cpu, id: u32, ipa_bits: u32) -> Result<()> {
    cpu.set_system(SysReg::MPIDR_EL1, layout::mpidr(id))?;
    if cpu.redistributor()? != layout::redistributor(id) {
        return Err(Error::Missing("redistributors in the order of their vCPUs"));
    }
    cpu.trap_no_debugging()?;
    id_registers(cpu, ipa_bits)
}

/// Sets the ID registers. The framework may keep features on, which does no harm; but a guest that sees no system
/// registers of the interrupt controller does not boot.
fn id_registers(cpu: &Cpu, ipa_bits: u32) -> Result<()> {
    for reg in ID_REGISTERS {
        let value = cpu.get_system(reg)?;
        let guest = sysreg::guest_id(sysreg::SysReg(reg as u16), value, ipa_bits);
        if guest != value {
            let _ = cpu.set_system(reg, guest);
        }
    }
    match cpu.get_system(SysReg::ID_AA64PFR0_EL1)? >> 24 & 0xf {
        0 => Err(Error::Missing("system registers of the interrupt controller (ID_AA64PFR0_EL1)")),
        _ => Ok(()),
    }
}

/// Starts a vCPU: the state of the boot protocol of Linux and of CPU_ON.
pub(super) fn start(cpu: &Cpu, start: Start) -> Result<()> {
    cpu.set_system(SysReg::SCTLR_EL1, SCTLR)?;
    cpu.set_system(SysReg::CNTV_CTL_EL0, 0)?;
    // Not every framework has the physical timer's registers.
    let _ = cpu.set_system(SysReg::CNTP_CTL_EL0, 0);
    for reg in GENERAL {
        cpu.set(reg, 0)?;
    }
    cpu.set(Reg::X0, start.context)?;
    cpu.set(Reg::PC, start.entry)?;
    cpu.set(Reg::CPSR, PSTATE)
}
