//! A vCPU on Hypervisor.framework: entries into the guest and their exits.

use std::sync::Arc;
use std::time::Duration;

use applevisor_sys::{hv_reg_t as Reg, hv_sys_reg_t as SysReg};
use boxlite_hv::{Error, Exit, Result, Vcpu};

use crate::decode::{
    Answer, DataAbort, Exception, INSTRUCTION, SystemAccess, Transfer, Wait as Waiting,
};
use crate::exception::{Before, Fault, after_instruction, raise};
use crate::kick::Kicked;
use crate::power::Ready;
use crate::psci::{Action, Call, status};
use crate::setup::{self, GENERAL};
use crate::state::VcpuState;
use crate::sys::{self, Cpu, RawExit, reason};
use crate::timer::{self, Wait};
use crate::{Shared, gic, sysreg};

/// The longest wait of a WFI outside the guest. The framework does not say that an interrupt is pending, and a WFI may
/// end without one.
const LONGEST_WAIT: Duration = Duration::from_millis(1);

/// A vCPU, on the thread that bound it.
#[derive(Debug)]
pub struct HvfVcpu {
    cpu: Cpu,
    id: u32,
    kicked: Kicked,
    /// Whether this vCPU was on when it looked last. Another one's SYSTEM_OFF also kicks this one, which looks again.
    on: bool,
    /// The load whose data the VMM is filling in.
    unanswered: Option<Transfer>,
    data: [u8; 8],
    /// The offset of this vCPU's counter, once it is set.
    offset: Option<u64>,
    /// The framework masked the virtual timer when it fired.
    timer_masked: bool,
    /// Dropped last: the VM outlives its vCPUs.
    shared: Arc<Shared>,
}

/// What the VMM must handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Read { gpa: u64, bytes: usize },
    Write { gpa: u64, bytes: usize },
    Shutdown,
    Reset,
    Kicked,
}

impl HvfVcpu {
    pub(super) fn new(cpu: Cpu, id: u32, shared: Arc<Shared>) -> Self {
        let kicked = shared.kicks.register(id, cpu.id());
        let (unanswered, data, offset) = (None, [0; 8], None);
        Self { cpu, id, kicked, on: false, unanswered, data, offset, timer_masked: false, shared }
    }

    /// Finishes the load whose data the VMM has filled in.
    fn complete_exit(&mut self) -> Result<()> {
        let Some(transfer) = self.unanswered.take() else { return Ok(()) };
        self.set_register(transfer.register, transfer.complete_read(&self.data))?;
        self.advance()
    }

    /// Runs the guest until there is something that the VMM must handle.
    fn leave(&mut self) -> Result<Leave> {
        loop {
            if self.kicked.take() {
                self.on = false;
                return Ok(Leave::Kicked);
            }
            if !self.on {
                match self.shared.power.wait(self.id, &self.kicked) {
                    Ready::Kicked => return Ok(Leave::Kicked),
                    Ready::Start(start) => setup::start(&self.cpu, start)?,
                    Ready::On => {}
                }
                self.on = true;
                continue;
            }
            let exit = self.enter()?;
            if let Some(leave) = self.handle(exit)? {
                return Ok(leave);
            }
        }
    }

    /// Enters the guest once.
    fn enter(&mut self) -> Result<RawExit> {
        if self.timer_masked && !timer::asserts(self.cpu.get_system(SysReg::CNTV_CTL_EL0)?) {
            self.cpu.set_timer_mask(false)?;
            self.timer_masked = false;
        }
        let offset = self.shared.counter().enter();
        let result = self.set_offset(offset).and_then(|()| self.cpu.run());
        self.shared.counter().leave(sys::counter());
        result
    }

    fn set_offset(&mut self, offset: u64) -> Result<()> {
        if self.offset != Some(offset) {
            self.cpu.set_timer_offset(offset)?;
            self.offset = Some(offset);
        }
        Ok(())
    }

    fn handle(&mut self, exit: RawExit) -> Result<Option<Leave>> {
        match exit.reason {
            reason::CANCELED => Ok(None),
            reason::EXCEPTION => self.exception(&exit),
            reason::VTIMER => self.timer_fired().map(|()| None),
            other => {
                let reason = format!("exit for the unknown reason {other}");
                Err(Error::Vcpu { id: self.id, reason })
            }
        }
    }

    fn exception(&mut self, exit: &RawExit) -> Result<Option<Leave>> {
        let address = exit.virtual_address;
        let done = match Exception::decode(exit.syndrome) {
            Exception::DataAbort(abort) => return self.data_abort(&abort, exit),
            Exception::Hvc(imm) => return self.firmware(imm),
            Exception::Smc(imm) => {
                self.advance()?;
                return self.firmware(imm);
            }
            Exception::System(access) => self.system(&access),
            Exception::Wait(Waiting::Interrupt | Waiting::InterruptOrTimeout(_)) => self.wait(),
            // An event may have been there already.
            Exception::Wait(Waiting::Event | Waiting::EventOrTimeout(_)) => self.advance(),
            Exception::InstructionAbort(abort) => {
                self.raise(Fault::InstructionAbort { address, abort })
            }
            Exception::Debug { class, iss } => self.raise(Fault::Debug { class, iss, address }),
            Exception::Other { .. } => self.raise(Fault::Undefined),
        };
        done.map(|()| None)
    }

    fn data_abort(&mut self, abort: &DataAbort, exit: &RawExit) -> Result<Option<Leave>> {
        let gpa = exit.physical_address;
        match abort.answer() {
            Answer::Read(transfer) => {
                let bytes = transfer.width.bytes();
                self.data = [0; 8];
                self.unanswered = Some(transfer);
                Ok(Some(Leave::Read { gpa, bytes }))
            }
            Answer::Write(transfer) => {
                let bytes = transfer.width.bytes();
                self.data = self.register(transfer.register)?.to_le_bytes();
                self.advance()?;
                Ok(Some(Leave::Write { gpa, bytes }))
            }
            Answer::Skip => self.advance().map(|()| None),
            Answer::External => {
                let address = exit.virtual_address;
                self.raise(Fault::DataAbort { address, abort: *abort }).map(|()| None)
            }
        }
    }

    /// A firmware call. The immediate of the calling convention is 0.
    fn firmware(&mut self, imm: u16) -> Result<Option<Leave>> {
        let mut registers = [0; 4];
        for (value, reg) in registers.iter_mut().zip(GENERAL) {
            *value = self.cpu.get(reg)?;
        }
        let action = match imm {
            0 => self.shared.power.call(self.id, Call::new(registers)),
            _ => Action::Return(status::NOT_SUPPORTED),
        };
        match action {
            Action::Return(value) => self.cpu.set(Reg::X0, value)?,
            Action::Start(_) => self.cpu.set(Reg::X0, status::SUCCESS)?,
            Action::Park => self.on = false,
            Action::SystemOff => return self.system_stopped(Leave::Shutdown),
            Action::SystemReset => return self.system_stopped(Leave::Reset),
        }
        Ok(None)
    }

    /// All vCPUs are off. The others find it out when they are kicked.
    fn system_stopped(&mut self, leave: Leave) -> Result<Option<Leave>> {
        self.on = false;
        self.shared.kicks.kick_others(self.id)?;
        self.shared.power.wake();
        Ok(Some(leave))
    }

    fn system(&mut self, access: &SystemAccess) -> Result<()> {
        let value = match sysreg::answer(access.reg, access.read) {
            sysreg::Answer::Value(value) => value,
            sysreg::Answer::Counter => self.counter(),
            sysreg::Answer::Ignore => return self.advance(),
            sysreg::Answer::Undefined => return self.raise(Fault::Undefined),
        };
        self.set_register(access.rt, value)?;
        self.advance()
    }

    /// The guest's counter.
    fn counter(&self) -> u64 {
        sys::counter().wrapping_sub(self.offset.unwrap_or(0))
    }

    /// WFI and WFIT: the framework waits itself with its interrupt controller, so that this is rare.
    fn wait(&mut self) -> Result<()> {
        self.advance()?;
        let control = self.cpu.get_system(SysReg::CNTV_CTL_EL0)?;
        let compare = self.cpu.get_system(SysReg::CNTV_CVAL_EL0)?;
        let time = match timer::wait(control, compare, self.counter(), sys::frequency()) {
            Wait::Expired => return Ok(()),
            Wait::For(time) => time.min(LONGEST_WAIT),
            Wait::Forever => LONGEST_WAIT,
        };
        self.shared.power.idle(time, &self.kicked);
        Ok(())
    }

    /// The virtual timer fired and left its interrupt to the VMM: with its own interrupt controller, the framework
    /// delivers the interrupt itself. The timer stays masked until the guest has set it anew.
    fn timer_fired(&mut self) -> Result<()> {
        self.timer_masked = true;
        self.cpu.set_pending(gic::TIMER)
    }

    fn raise(&mut self, fault: Fault) -> Result<()> {
        let cpu = &self.cpu;
        let before = Before {
            pc: cpu.get(Reg::PC)?,
            pstate: cpu.get(Reg::CPSR)?,
            sctlr: cpu.get_system(SysReg::SCTLR_EL1)?,
            vbar: cpu.get_system(SysReg::VBAR_EL1)?,
        };
        let after = raise(fault, &before);
        cpu.set_system(SysReg::ELR_EL1, after.elr)?;
        cpu.set_system(SysReg::SPSR_EL1, after.spsr)?;
        cpu.set_system(SysReg::ESR_EL1, after.esr)?;
        if let Some(far) = after.far {
            cpu.set_system(SysReg::FAR_EL1, far)?;
        }
        cpu.set(Reg::CPSR, after.pstate)?;
        cpu.set(Reg::PC, after.pc)
    }

    /// Moves the PC past an instruction that the VMM executed.
    fn advance(&self) -> Result<()> {
        self.cpu.set(Reg::PC, self.cpu.get(Reg::PC)?.wrapping_add(INSTRUCTION))?;
        let pstate = self.cpu.get(Reg::CPSR)?;
        match after_instruction(pstate) {
            after if after != pstate => self.cpu.set(Reg::CPSR, after),
            _ => Ok(()),
        }
    }

    /// A general register in a transfer; there is none for XZR.
    fn register(&self, register: u8) -> Result<u64> {
        GENERAL.get(usize::from(register)).map_or(Ok(0), |&reg| self.cpu.get(reg))
    }

    fn set_register(&self, register: u8, value: u64) -> Result<()> {
        GENERAL.get(usize::from(register)).map_or(Ok(()), |&reg| self.cpu.set(reg, value))
    }
}

impl Drop for HvfVcpu {
    fn drop(&mut self) {
        self.shared.kicks.forget(self.id);
    }
}

impl Vcpu for HvfVcpu {
    type State = VcpuState;

    fn run(&mut self) -> Result<Exit<'_>> {
        self.complete_exit()?;
        Ok(match self.leave()? {
            Leave::Read { gpa, bytes } => Exit::MmioRead { gpa, data: &mut self.data[..bytes] },
            Leave::Write { gpa, bytes } => Exit::MmioWrite { gpa, data: &self.data[..bytes] },
            Leave::Shutdown => Exit::Shutdown,
            Leave::Reset => Exit::Reset,
            Leave::Kicked => Exit::Kicked,
        })
    }

    fn resumed(&mut self) {
        self.shared.counter().resume(sys::counter());
    }

    fn save(&mut self) -> Result<VcpuState> {
        self.complete_exit()?;
        VcpuState::save(&self.cpu, self.shared.power.power(self.id))
    }

    fn restore(&mut self, state: &VcpuState) -> Result<()> {
        let offset = self.shared.counter().offset();
        state.restore(&self.cpu, self.id, offset)?;
        (self.offset, self.timer_masked) = (Some(offset), state.timer_masked());
        (self.on, self.unanswered) = (false, None);
        self.shared.power.set_power(self.id, state.power());
        Ok(())
    }
}
