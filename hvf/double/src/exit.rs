//! KVM's exits as the framework's: what KVM has decoded is encoded again, as the processor had it.

use applevisor_sys::{
    hv_error_t, hv_reg_t as Reg, hv_sys_reg_t as SysReg, hv_vcpu_exit_exception_t,
};
use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_EXIT_HYPERCALL, KVM_EXIT_INTR, KVM_EXIT_MMIO, KVM_HYPERCALL_EXIT_SMC,
};

use crate::instruction::{self, Access, Transfer};
use crate::oracle::{Kvm, Pending};
use crate::registers;
use crate::stage1::Stage1;
use crate::sys::{Result, failed};
use crate::vcpu::Vcpu;

/// ESR_EL2: exception classes of HVC, SMC and a data abort from a lower level, each of a 32-bit instruction.
const HVC: u64 = 0x16 << 26 | 1 << 25;
const SMC: u64 = 0x17 << 26 | 1 << 25;
const DATA_ABORT: u64 = 0x24 << 26 | 1 << 25;
/// FnV: the virtual address is not valid.
const FAR_INVALID: u64 = 1 << 10;
/// Fault status: of stage 2, at level 3.
const TRANSLATION: u64 = 0b00_0111;
const PERMISSION: u64 = 0b00_1111;

/// PSTATE.M: EL1 with its own stack pointer.
const EL1H: u64 = 5;

impl Vcpu {
    /// The framework's exit for KVM's last one; `None` if the guest just goes on.
    pub(crate) fn exit(&mut self) -> Result<Option<hv_vcpu_exit_exception_t>> {
        // SAFETY: the page is mapped, and KVM writes it during KVM_RUN only. The members are those of the reason.
        let (reason, exit) = unsafe { ((*self.run).exit_reason, &(*self.run).__bindgen_anon_1) };
        match reason {
            KVM_EXIT_INTR => Ok(None),
            KVM_EXIT_MMIO => {
                // SAFETY: as above.
                let mmio = unsafe { exit.mmio };
                self.mmio(&Kvm {
                    gpa: mmio.phys_addr,
                    write: mmio.is_write != 0,
                    data: mmio.data,
                    len: mmio.len,
                })
                .map(Some)
            }
            KVM_EXIT_ARM_NISV => {
                // SAFETY: as above.
                let nisv = unsafe { exit.arm_nisv };
                self.undescribed(nisv.esr_iss, nisv.fault_ipa).map(Some)
            }
            KVM_EXIT_HYPERCALL => {
                // SAFETY: as above.
                let flags = unsafe { exit.hypercall.__bindgen_anon_1.flags };
                self.call(flags & u64::from(KVM_HYPERCALL_EXIT_SMC) != 0).map(Some)
            }
            other => {
                Err(failed(hv_error_t::HV_ERROR, &format!("KVM exits for the reason {other}")))
            }
        }
    }

    /// A firmware call. KVM has gone past an SMC, which the framework leaves to its caller.
    fn call(&mut self, smc: bool) -> Result<hv_vcpu_exit_exception_t> {
        if smc {
            let pc = registers::general(Reg::PC);
            let after = registers::get(&self.fd, pc)?;
            registers::set(&self.fd, pc, after.wrapping_sub(4))?;
        }
        let syndrome = if smc { SMC } else { HVC };
        Ok(hv_vcpu_exit_exception_t { syndrome, virtual_address: 0, physical_address: 0 })
    }

    /// An access to a device that KVM has decoded.
    fn mmio(&mut self, kvm: &Kvm) -> Result<hv_vcpu_exit_exception_t> {
        let pc = self.get(Reg::PC)?;
        let (stage1, access) = self.instruction(pc)?;
        let wrong = |what: &str| {
            let text = format!("{what}: {access:x?} at PC {pc:#x}, KVM has {kvm:x?}");
            failed(hv_error_t::HV_ERROR, &text)
        };
        let Some(transfer) = access.and_then(|access| access.transfer) else {
            return Err(wrong("an instruction that the double does not know"));
        };
        if (transfer.write, 1 << transfer.size) != (kvm.write, kvm.len) {
            return Err(wrong("another direction or width than the instruction's"));
        }
        if transfer.write && !kvm.carries(self.x(transfer.register)?) {
            return Err(wrong("other data than the instruction's register has"));
        }
        let virtual_address = self.address(access, pc)?;
        if self.translate(&stage1, virtual_address) != Some(kvm.gpa) {
            return Err(wrong("another address than the guest's tables have"));
        }
        self.begin(transfer, pc)?;
        let status = if self.vm.memory.is_mapped(kvm.gpa) { PERMISSION } else { TRANSLATION };
        let syndrome = DATA_ABORT | transfer.iss() | status;
        Ok(hv_vcpu_exit_exception_t { syndrome, virtual_address, physical_address: kvm.gpa })
    }

    fn begin(&mut self, transfer: Transfer, pc: u64) -> Result<()> {
        let pstate = self.get(Reg::CPSR)?;
        self.pending = Some(Pending::new(transfer, pc, pstate));
        Ok(())
    }

    /// An access that the processor does not describe. KVM has nothing to complete.
    fn undescribed(&mut self, iss: u64, gpa: u64) -> Result<hv_vcpu_exit_exception_t> {
        let pc = self.get(Reg::PC)?;
        let (_, access) = self.instruction(pc)?;
        let syndrome = DATA_ABORT | iss;
        let exception = match access {
            Some(_) => hv_vcpu_exit_exception_t {
                syndrome,
                virtual_address: self.address(access, pc)?,
                physical_address: gpa,
            },
            None => hv_vcpu_exit_exception_t {
                syndrome: syndrome | FAR_INVALID,
                virtual_address: 0,
                physical_address: gpa,
            },
        };
        Ok(exception)
    }

    /// The load or store at the PC, and how its addresses are translated.
    fn instruction(&self, pc: u64) -> Result<(Stage1, Option<Access>)> {
        let stage1 = Stage1 {
            sctlr: self.get_system(SysReg::SCTLR_EL1)?,
            tcr: self.get_system(SysReg::TCR_EL1)?,
            ttbr0: self.get_system(SysReg::TTBR0_EL1)?,
            ttbr1: self.get_system(SysReg::TTBR1_EL1)?,
        };
        let word = self.translate(&stage1, pc).and_then(|gpa| self.vm.memory.read_u32(gpa));
        Ok((stage1, word.and_then(instruction::decode)))
    }

    fn translate(&self, stage1: &Stage1, va: u64) -> Option<u64> {
        stage1.translate(va, |at| self.vm.memory.read_u64(at))
    }

    /// The virtual address of an access.
    fn address(&self, access: Option<Access>, pc: u64) -> Result<u64> {
        let access = access.ok_or(hv_error_t::HV_ERROR)?;
        access.address.resolve(pc, |number| self.x(number), || self.stack_pointer())
    }

    fn stack_pointer(&self) -> Result<u64> {
        match self.get(Reg::CPSR)? & 0xf {
            EL1H => self.get_system(SysReg::SP_EL1),
            _ => self.get_system(SysReg::SP_EL0),
        }
    }

    /// A general register as KVM has it; 31 is zero.
    pub(crate) fn x(&self, number: u32) -> Result<u64> {
        if number == 31 { Ok(0) } else { registers::get(&self.fd, registers::x(number)) }
    }
}
