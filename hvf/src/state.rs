//! The state of a VM and its vCPUs that the guest can observe: saved and restored.
//!
//! The order of a restore: vCPUs with their affinities, the interrupt controller, then for each vCPU the controller's
//! CPU interface, system registers, general and vector registers, and at last the timers.

use applevisor_sys::{
    hv_gic_icc_reg_t as Icc, hv_reg_t as Reg, hv_simd_fp_reg_t as Vector, hv_sys_reg_t as SysReg,
};
use boxlite_hv::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::psci::Power;
use crate::setup::GENERAL;
use crate::sys::{self, Cpu};
use crate::timer::{Counter, ENABLE, IMASK};

/// The saved state of a VM: the interrupt controller and the guest's counter.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    /// The framework's own format.
    gic: Vec<u8>,
    counter: u64,
}

impl VmState {
    pub(super) fn save(counter: &Counter) -> Result<Self> {
        Ok(Self { gic: sys::gic_state()?, counter: counter.value(sys::counter()) })
    }

    /// Restores the interrupt controller, and returns the counter.
    pub(super) fn restore(&self) -> Result<Counter> {
        sys::set_gic_state(&self.gic)?;
        Ok(Counter::at(self.counter, sys::counter()))
    }
}

/// The saved state of a vCPU. ID registers are not in it: a restored VM gets the same from its configuration.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    power: Power,
    icc: Vec<(u16, u64)>,
    system: Vec<(u16, u64)>,
    general: [u64; 31],
    pc: u64,
    pstate: u64,
    fpcr: u64,
    fpsr: u64,
    vectors: [[u64; 2]; 32],
    /// The virtual timer, and whether the framework has masked it.
    timer: Timer,
    timer_masked: bool,
    /// The physical timer, where the framework has its registers.
    physical_timer: Option<Timer>,
}

/// A timer of the guest.
#[derive(Debug, Serialize, Deserialize)]
struct Timer {
    compare: u64,
    control: u64,
}

/// The registers of a timer: its compare value and its control.
type TimerRegisters = (SysReg, SysReg);

const VIRTUAL_TIMER: TimerRegisters = (SysReg::CNTV_CVAL_EL0, SysReg::CNTV_CTL_EL0);
const PHYSICAL_TIMER: TimerRegisters = (SysReg::CNTP_CVAL_EL0, SysReg::CNTP_CTL_EL0);

/// Registers of the CPU interface, in the order of a restore: system register access first.
const ICC: [Icc; 9] = [
    Icc::SRE_EL1,
    Icc::CTLR_EL1,
    Icc::PMR_EL1,
    Icc::BPR0_EL1,
    Icc::BPR1_EL1,
    Icc::AP0R0_EL1,
    Icc::AP1R0_EL1,
    Icc::IGRPEN0_EL1,
    Icc::IGRPEN1_EL1,
];

/// System registers besides the virtual timer's and the debug registers.
const SYSTEM: [SysReg; 36] = {
    use SysReg::*;
    [
        SCTLR_EL1,
        ACTLR_EL1,
        CPACR_EL1,
        TTBR0_EL1,
        TTBR1_EL1,
        TCR_EL1,
        MAIR_EL1,
        AMAIR_EL1,
        VBAR_EL1,
        CONTEXTIDR_EL1,
        SPSR_EL1,
        ELR_EL1,
        SP_EL0,
        SP_EL1,
        ESR_EL1,
        FAR_EL1,
        AFSR0_EL1,
        AFSR1_EL1,
        PAR_EL1,
        CSSELR_EL1,
        TPIDR_EL0,
        TPIDRRO_EL0,
        TPIDR_EL1,
        CNTKCTL_EL1,
        APIAKEYLO_EL1,
        APIAKEYHI_EL1,
        APIBKEYLO_EL1,
        APIBKEYHI_EL1,
        APDAKEYLO_EL1,
        APDAKEYHI_EL1,
        APDBKEYLO_EL1,
        APDBKEYHI_EL1,
        APGAKEYLO_EL1,
        APGAKEYHI_EL1,
        MDSCR_EL1,
        MDCCINT_EL1,
    ]
};

const VECTORS: [Vector; 32] = {
    use Vector::*;
    [
        Q0, Q1, Q2, Q3, Q4, Q5, Q6, Q7, Q8, Q9, Q10, Q11, Q12, Q13, Q14, Q15, Q16, Q17, Q18, Q19,
        Q20, Q21, Q22, Q23, Q24, Q25, Q26, Q27, Q28, Q29, Q30, Q31,
    ]
};

/// Values and controls of breakpoints.
const BREAKPOINTS: [SysReg; 32] = {
    use SysReg::*;
    [
        DBGBVR0_EL1,
        DBGBCR0_EL1,
        DBGBVR1_EL1,
        DBGBCR1_EL1,
        DBGBVR2_EL1,
        DBGBCR2_EL1,
        DBGBVR3_EL1,
        DBGBCR3_EL1,
        DBGBVR4_EL1,
        DBGBCR4_EL1,
        DBGBVR5_EL1,
        DBGBCR5_EL1,
        DBGBVR6_EL1,
        DBGBCR6_EL1,
        DBGBVR7_EL1,
        DBGBCR7_EL1,
        DBGBVR8_EL1,
        DBGBCR8_EL1,
        DBGBVR9_EL1,
        DBGBCR9_EL1,
        DBGBVR10_EL1,
        DBGBCR10_EL1,
        DBGBVR11_EL1,
        DBGBCR11_EL1,
        DBGBVR12_EL1,
        DBGBCR12_EL1,
        DBGBVR13_EL1,
        DBGBCR13_EL1,
        DBGBVR14_EL1,
        DBGBCR14_EL1,
        DBGBVR15_EL1,
        DBGBCR15_EL1,
    ]
};

/// Values and controls of watchpoints.
const WATCHPOINTS: [SysReg; 32] = {
    use SysReg::*;
    [
        DBGWVR0_EL1,
        DBGWCR0_EL1,
        DBGWVR1_EL1,
        DBGWCR1_EL1,
        DBGWVR2_EL1,
        DBGWCR2_EL1,
        DBGWVR3_EL1,
        DBGWCR3_EL1,
        DBGWVR4_EL1,
        DBGWCR4_EL1,
        DBGWVR5_EL1,
        DBGWCR5_EL1,
        DBGWVR6_EL1,
        DBGWCR6_EL1,
        DBGWVR7_EL1,
        DBGWCR7_EL1,
        DBGWVR8_EL1,
        DBGWCR8_EL1,
        DBGWVR9_EL1,
        DBGWCR9_EL1,
        DBGWVR10_EL1,
        DBGWCR10_EL1,
        DBGWVR11_EL1,
        DBGWCR11_EL1,
        DBGWVR12_EL1,
        DBGWCR12_EL1,
        DBGWVR13_EL1,
        DBGWCR13_EL1,
        DBGWVR14_EL1,
        DBGWCR14_EL1,
        DBGWVR15_EL1,
        DBGWCR15_EL1,
    ]
};

/// The system registers of a vCPU: as many breakpoints and watchpoints as ID_AA64DFR0_EL1 says.
fn system(cpu: &Cpu) -> Result<Vec<SysReg>> {
    let features = cpu.get_system(SysReg::ID_AA64DFR0_EL1)?;
    // BRPs and WRPs are one less than the number.
    let pairs = |low: u32| 2 * ((features >> low & 0xf) as usize + 1);
    let mut registers = SYSTEM.to_vec();
    registers.extend(&BREAKPOINTS[..pairs(12)]);
    registers.extend(&WATCHPOINTS[..pairs(20)]);
    Ok(registers)
}

impl VcpuState {
    pub(super) fn save(cpu: &Cpu, power: Power) -> Result<Self> {
        let icc = ICC.iter().map(|&reg| Ok((reg as u16, cpu.get_icc(reg)?)));
        let system = system(cpu)?.into_iter().map(|reg| Ok((reg as u16, cpu.get_system(reg)?)));
        let mut general = [0; 31];
        for (value, reg) in general.iter_mut().zip(GENERAL) {
            *value = cpu.get(reg)?;
        }
        let mut vectors = [[0; 2]; 32];
        for (halves, reg) in vectors.iter_mut().zip(VECTORS) {
            let value = cpu.get_vector(reg)?;
            *halves = [value as u64, (value >> 64) as u64];
        }
        Ok(Self {
            power,
            icc: icc.collect::<Result<_>>()?,
            system: system.collect::<Result<_>>()?,
            general,
            pc: cpu.get(Reg::PC)?,
            pstate: cpu.get(Reg::CPSR)?,
            fpcr: cpu.get(Reg::FPCR)?,
            fpsr: cpu.get(Reg::FPSR)?,
            vectors,
            timer: Timer::save(cpu, VIRTUAL_TIMER)?,
            timer_masked: cpu.timer_mask()?,
            physical_timer: sys::if_supported(Timer::save(cpu, PHYSICAL_TIMER))?,
        })
    }

    /// The power state of the vCPU.
    pub(super) fn power(&self) -> Power {
        self.power
    }

    /// Whether the virtual timer was masked, after its exit.
    pub(super) fn timer_masked(&self) -> bool {
        self.timer_masked
    }

    /// Restores the registers of vCPU `id`, whose counter has this offset.
    pub(super) fn restore(&self, cpu: &Cpu, id: u32, offset: u64) -> Result<()> {
        let unknown = |reg: u16| {
            let reg = crate::sysreg::SysReg(reg);
            Error::Vcpu { id, reason: format!("the saved state has the unknown register {reg:?}") }
        };
        for &(saved, value) in &self.icc {
            let reg = ICC.iter().find(|reg| **reg as u16 == saved);
            cpu.set_icc(*reg.ok_or_else(|| unknown(saved))?, value)?;
        }
        let registers = system(cpu)?;
        for &(saved, value) in &self.system {
            let reg = registers.iter().find(|reg| **reg as u16 == saved);
            cpu.set_system(*reg.ok_or_else(|| unknown(saved))?, value)?;
        }
        for (&value, reg) in self.general.iter().zip(GENERAL) {
            cpu.set(reg, value)?;
        }
        for (&[low, high], reg) in self.vectors.iter().zip(VECTORS) {
            cpu.set_vector(reg, u128::from(high) << 64 | u128::from(low))?;
        }
        cpu.set(Reg::PC, self.pc)?;
        cpu.set(Reg::CPSR, self.pstate)?;
        cpu.set(Reg::FPCR, self.fpcr)?;
        cpu.set(Reg::FPSR, self.fpsr)?;
        cpu.set_timer_offset(offset)?;
        cpu.set_timer_mask(self.timer_masked)?;
        if let Some(timer) = &self.physical_timer {
            timer.restore(cpu, PHYSICAL_TIMER)?;
        }
        self.timer.restore(cpu, VIRTUAL_TIMER)
    }
}

impl Timer {
    fn save(cpu: &Cpu, (compare, control): TimerRegisters) -> Result<Self> {
        Ok(Self { compare: cpu.get_system(compare)?, control: cpu.get_system(control)? })
    }

    /// ISTATUS of the control register follows from the rest.
    fn restore(&self, cpu: &Cpu, (compare, control): TimerRegisters) -> Result<()> {
        cpu.set_system(compare, self.compare)?;
        cpu.set_system(control, self.control & (ENABLE | IMASK))
    }
}
