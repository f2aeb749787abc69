//! Exceptions that the VMM raises in a guest at EL1: the registers afterwards, as a pure function of those before
//! (AArch64.TakeException in the Arm ARM's pseudocode).

use crate::decode::{DataAbort, InstructionAbort, class, syndrome};

/// PSTATE as in SPSR_EL1 and CPSR.
pub mod pstate {
    /// M\[4\]: AArch32 state.
    pub const AARCH32: u64 = 1 << 4;
    /// M\[3:0\]: EL0.
    pub const EL0: u64 = 0;
    /// M\[3:0\]: EL1 with SP_EL0.
    pub const EL1T: u64 = 4;
    /// M\[3:0\]: EL1 with SP_EL1.
    pub const EL1H: u64 = 5;
    /// M\[4:0\].
    pub const MODE: u64 = 0x1f;
    /// D, A, I and F: debug exceptions, SError, IRQ and FIQ are masked.
    pub const DAIF: u64 = 0xf << 6;
    /// BTYPE: how the last branch got here.
    pub const BTYPE: u64 = 3 << 10;
    /// SS: single step, not yet at its instruction.
    pub const SS: u64 = 1 << 21;
    /// SSBS: speculative store bypass is safe.
    pub const SSBS: u64 = 1 << 12;
    /// PAN: privileged access never.
    pub const PAN: u64 = 1 << 22;
    /// DIT: data-independent timing.
    pub const DIT: u64 = 1 << 24;
    /// TCO: tag checks are off.
    pub const TCO: u64 = 1 << 25;
    /// N, Z, C and V.
    pub const NZCV: u64 = 0xf << 28;
}

/// SCTLR_EL1.SPAN: PAN is unchanged by an exception.
const SPAN: u64 = 1 << 23;
/// SCTLR_EL1.DSSBS: the value of SSBS after an exception.
const DSSBS: u64 = 1 << 44;

/// The fault status of a synchronous external abort, not on a table walk.
const EXTERNAL: u32 = 0b01_0000;
/// ISS bits of aborts that the guest sees as the exit had them.
const FAR_INVALID: u32 = 1 << 10;
const WRITE: u32 = 1 << 6;

/// What happens to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The instruction is undefined.
    Undefined,
    /// A load or store of an address where nothing answers.
    DataAbort {
        /// The virtual address.
        address: u64,
        /// The exit's syndrome.
        abort: DataAbort,
    },
    /// An instruction fetch from an address where nothing answers.
    InstructionAbort {
        /// The virtual address.
        address: u64,
        /// The exit's syndrome.
        abort: InstructionAbort,
    },
    /// A debug exception of the guest's own.
    Debug {
        /// The exception class, for a lower exception level.
        class: u8,
        /// The instruction-specific syndrome.
        iss: u32,
        /// The virtual address of a watchpoint.
        address: u64,
    },
}

/// The registers that decide where an exception goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// The PC: the preferred return address.
    pub pc: u64,
    /// PSTATE.
    pub pstate: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// VBAR_EL1.
    pub vbar: u64,
}

/// The registers that an exception changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// The PC: in the vector table.
    pub pc: u64,
    /// PSTATE.
    pub pstate: u64,
    /// ELR_EL1.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1, if the exception sets it.
    pub far: Option<u64>,
}

/// Raises a fault at EL1.
pub fn raise(fault: Fault, before: &Before) -> After {
    let (esr, far) = fault.syndrome(is_el1(before.pstate));
    After {
        pc: (before.vbar & !0x7ff).wrapping_add(vector(before.pstate)),
        pstate: handler_pstate(before),
        elr: before.pc,
        spsr: before.pstate,
        esr,
        far,
    }
}

/// PSTATE after an instruction that the VMM executed: a step is over, and there was no branch.
pub fn after_instruction(pstate: u64) -> u64 {
    pstate & !(pstate::BTYPE | pstate::SS)
}

fn is_el1(pstate: u64) -> bool {
    matches!(pstate & pstate::MODE, pstate::EL1T | pstate::EL1H)
}

/// The offset of the synchronous vector, by the exception level that the exception is taken from.
fn vector(pstate: u64) -> u64 {
    match pstate & pstate::MODE {
        pstate::EL1T => 0x000,
        pstate::EL1H => 0x200,
        mode if mode & pstate::AARCH32 == 0 => 0x400,
        _ => 0x600,
    }
}

/// PSTATE in the handler: EL1 with its own stack, all exceptions masked, no single step, no illegal state.
fn handler_pstate(before: &Before) -> u64 {
    use pstate::{DAIF, DIT, EL1H, NZCV, PAN, SSBS, TCO};
    let kept = before.pstate & (NZCV | PAN | DIT | TCO);
    let pan = if before.sctlr & SPAN == 0 { PAN } else { 0 };
    let ssbs = if before.sctlr & DSSBS != 0 { SSBS } else { 0 };
    kept | pan | ssbs | DAIF | EL1H
}

impl Fault {
    /// ESR_EL1, and FAR_EL1 if it changes, for an exception from EL1 or from EL0.
    fn syndrome(self, from_el1: bool) -> (u64, Option<u64>) {
        // Each of these classes has a pair: from a lower exception level, and from the same.
        let pair = |class: u8| class | u8::from(from_el1);
        let invalid = |invalid| if invalid { FAR_INVALID } else { 0 };
        match self {
            Self::Undefined => (syndrome(class::UNKNOWN, 0), None),
            Self::DataAbort { address, abort } => {
                let write = if abort.write { WRITE } else { 0 };
                let iss = EXTERNAL | write | invalid(abort.far_invalid);
                (syndrome(pair(class::DATA_ABORT), iss), Some(address))
            }
            Self::InstructionAbort { address, abort } => {
                let iss = EXTERNAL | invalid(abort.far_invalid);
                (syndrome(pair(class::INSTRUCTION_ABORT), iss), Some(address))
            }
            Self::Debug { class: class::BRK, iss, .. } => (syndrome(class::BRK, iss), None),
            Self::Debug { class, iss, address } => {
                let far = (class == class::WATCHPOINT).then_some(address);
                (syndrome(pair(class), iss), far)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::pstate::*;
    use super::*;
    use crate::decode::Exception;

    const VBAR: u64 = 0xffff_8000_0801_0800;

    fn before(pstate: u64) -> Before {
        Before { pc: 0x1000, pstate, sctlr: SPAN, vbar: VBAR }
    }

    fn data_abort(write: bool, far_invalid: bool) -> DataAbort {
        DataAbort {
            transfer: None,
            write,
            cache_maintenance: false,
            table_walk: false,
            far_invalid,
            status: 7,
        }
    }

    #[test]
    fn the_vector_depends_on_where_it_comes_from() {
        for (mode, offset) in [(EL1T, 0), (EL1H, 0x200), (EL0, 0x400), (AARCH32, 0x600)] {
            let after = raise(Fault::Undefined, &before(mode | NZCV));
            assert_eq!(after.pc, VBAR + offset);
            assert_eq!(after.pstate, NZCV | DAIF | EL1H);
            assert_eq!((after.elr, after.spsr), (0x1000, mode | NZCV));
            assert_eq!((after.esr, after.far), (0x0200_0000, None));
        }
    }

    #[test]
    fn a_data_abort_says_where() {
        let abort = |write, far_invalid, mode| {
            let fault = Fault::DataAbort { address: 0xdead, abort: data_abort(write, far_invalid) };
            let after = raise(fault, &before(mode));
            assert_eq!(after.far, Some(0xdead));
            after.esr
        };
        assert_eq!(abort(false, false, EL1H), 0x9600_0010);
        assert_eq!(abort(true, false, EL1T), 0x9600_0050);
        assert_eq!(abort(false, true, EL0), 0x9200_0410);
    }

    #[test]
    fn an_instruction_abort_says_where() {
        let abort = InstructionAbort { table_walk: false, far_invalid: false, status: 7 };
        let fault = Fault::InstructionAbort { address: 0x1000, abort };
        assert_eq!(raise(fault, &before(EL0)).esr, 0x8200_0010);
        let after = raise(fault, &before(EL1H));
        assert_eq!((after.esr, after.far), (0x8600_0010, Some(0x1000)));
    }

    #[test]
    fn debug_exceptions_keep_their_syndrome() {
        let esr = |class, mode| {
            let after = raise(Fault::Debug { class, iss: 0x22, address: 5 }, &before(mode));
            (after.esr, after.far)
        };
        assert_eq!(esr(class::BRK, EL1H), (0xf200_0022, None));
        assert_eq!(esr(class::BRK, EL0), (0xf200_0022, None));
        assert_eq!(esr(class::STEP, EL1H), (0xce00_0022, None));
        assert_eq!(esr(class::BREAKPOINT, EL0), (0xc200_0022, None));
        assert_eq!(esr(class::WATCHPOINT, EL0), (0xd200_0022, Some(5)));
    }

    #[test]
    fn pan_and_ssbs_follow_the_system_control_register() {
        let pstate = |sctlr, pstate| {
            raise(Fault::Undefined, &Before { sctlr, ..before(pstate) }).pstate & (PAN | SSBS)
        };
        assert_eq!(pstate(0, EL0), PAN);
        assert_eq!(pstate(SPAN, EL0), 0);
        assert_eq!(pstate(SPAN, EL1H | PAN | SSBS), PAN);
        assert_eq!(pstate(SPAN | DSSBS, EL0), SSBS);
    }

    proptest! {
        #[test]
        fn every_state_has_a_handler(pc: u64, pstate: u64, sctlr: u64, vbar: u64, esr: u64) {
            let before = Before { pc, pstate, sctlr, vbar };
            let fault = match Exception::decode(esr) {
                Exception::DataAbort(abort) => Fault::DataAbort { address: pc, abort },
                Exception::InstructionAbort(abort) => Fault::InstructionAbort { address: pc, abort },
                Exception::Debug { class, iss } => Fault::Debug { class, iss, address: pc },
                _ => Fault::Undefined,
            };
            let after = raise(fault, &before);
            prop_assert_eq!(after.pstate & (MODE | DAIF), EL1H | DAIF);
            prop_assert_eq!(after.pstate & !(MODE | DAIF | NZCV | PAN | DIT | TCO | SSBS), 0);
            prop_assert_eq!((after.elr, after.spsr), (pc, pstate));
            prop_assert!(after.pc.wrapping_sub(vbar & !0x7ff) <= 0x600);
        }
    }
}
