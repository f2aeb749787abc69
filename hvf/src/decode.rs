//! Exception syndromes: what a guest did that left the guest (ESR_EL2; Arm ARM DDI 0487, D24.2.40).
//!
//! The guest chooses every bit of a syndrome, so [`Exception::decode`] accepts all of them.
//! [`Exception::encode`] is its inverse, for tests and for a framework that is emulated.

use crate::sysreg::SysReg;

/// Length of an A64 instruction, in bytes.
pub const INSTRUCTION: u64 = 4;

/// The register number that is XZR in a transfer: it reads as zero, and writes to it are discarded.
pub const ZERO_REGISTER: u8 = 31;

/// Exception classes (the EC field).
pub mod class {
    /// Unknown reason: the instruction is undefined here.
    pub const UNKNOWN: u8 = 0x00;
    /// WFI, WFE, WFIT or WFET.
    pub const WAIT: u8 = 0x01;
    /// HVC in AArch64 state.
    pub const HVC: u8 = 0x16;
    /// SMC in AArch64 state.
    pub const SMC: u8 = 0x17;
    /// MSR, MRS or a system instruction in AArch64 state.
    pub const SYSTEM: u8 = 0x18;
    /// Instruction abort from a lower exception level; from the same one, it is one more.
    pub const INSTRUCTION_ABORT: u8 = 0x20;
    /// Data abort from a lower exception level; from the same one, it is one more.
    pub const DATA_ABORT: u8 = 0x24;
    /// Hardware breakpoint, from a lower exception level.
    pub const BREAKPOINT: u8 = 0x30;
    /// Software step, from a lower exception level.
    pub const STEP: u8 = 0x32;
    /// Watchpoint, from a lower exception level.
    pub const WATCHPOINT: u8 = 0x34;
    /// BRK in AArch64 state.
    pub const BRK: u8 = 0x3c;
}

const EC_SHIFT: u32 = 26;
/// IL: a 32-bit instruction, which all of A64 are.
pub(crate) const IL: u64 = 1 << 25;
const ISS_MASK: u32 = (1 << 25) - 1;

/// The exception of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// WFI, WFE or their forms with a timeout.
    Wait(Wait),
    /// HVC with its immediate. The PC is past the instruction.
    Hvc(u16),
    /// SMC with its immediate. The PC is at the instruction.
    Smc(u16),
    /// MSR, MRS or a system instruction.
    System(SystemAccess),
    /// An instruction fetch from an address without memory.
    InstructionAbort(InstructionAbort),
    /// A load or store to an address without memory, or to read-only memory.
    DataAbort(DataAbort),
    /// A debug exception: BRK, breakpoint, watchpoint or software step.
    Debug {
        /// The exception class.
        class: u8,
        /// The instruction-specific syndrome.
        iss: u32,
    },
    /// Every other class.
    Other {
        /// The exception class.
        class: u8,
        /// The instruction-specific syndrome.
        iss: u32,
    },
}

/// An instruction that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Wait for interrupt.
    Interrupt,
    /// Wait for event.
    Event,
    /// WFIT: wait for interrupt, with a timeout in the register.
    InterruptOrTimeout(u8),
    /// WFET: wait for event, with a timeout in the register.
    EventOrTimeout(u8),
}

/// A trapped access to a system register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemAccess {
    /// The system register.
    pub reg: SysReg,
    /// The general register: its target or its source.
    pub rt: u8,
    /// Whether the guest reads (MRS).
    pub read: bool,
}

/// The syndrome of a data abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAbort {
    /// The transfer, if the syndrome describes it (ISV). It does for loads and stores of one general register
    /// without write-back.
    pub transfer: Option<Transfer>,
    /// Whether the guest wrote (WnR).
    pub write: bool,
    /// A cache maintenance or address translation instruction (CM). WnR reads as one then, but nothing is written.
    pub cache_maintenance: bool,
    /// The fault was on a stage 1 page table walk (S1PTW).
    pub table_walk: bool,
    /// The virtual address of the exit is not valid (FnV).
    pub far_invalid: bool,
    /// The fault status (DFSC).
    pub status: u8,
}

/// A load or store of one general register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes.
    pub width: Width,
    /// Whether a load extends the sign (SSE).
    pub sign: bool,
    /// The general register (SRT).
    pub register: u8,
    /// Whether the register is 64 bits wide, not 32 (SF).
    pub wide: bool,
}

/// The size of a transfer (SAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Half,
    /// 4 bytes.
    Word,
    /// 8 bytes.
    Double,
}

impl Width {
    /// All widths, in the order of their SAS encodings.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];

    /// The number of bytes.
    pub fn bytes(self) -> usize {
        1 << self as usize
    }

    fn bits(self) -> u32 {
        8 << self as u32
    }
}

/// The syndrome of an instruction abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionAbort {
    /// The fault was on a stage 1 page table walk (S1PTW).
    pub table_walk: bool,
    /// The virtual address of the exit is not valid (FnV).
    pub far_invalid: bool,
    /// The fault status (IFSC).
    pub status: u8,
}

/// How a data abort is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A device register is read into the general register of the transfer.
    Read(Transfer),
    /// A device register is written from the general register of the transfer.
    Write(Transfer),
    /// Nothing: the instruction is skipped, as cache maintenance of an address without memory.
    Skip,
    /// The guest gets an external abort, as from a bus where nothing answers.
    External,
}

impl DataAbort {
    /// How this abort is answered. Only a stage 2 translation, access flag or permission fault whose syndrome
    /// describes the transfer is device I/O.
    pub fn answer(&self) -> Answer {
        // The two low bits of these fault codes are the level.
        let stage2 = matches!(self.status >> 2, 0b0001..=0b0011);
        if self.table_walk || !stage2 {
            return Answer::External;
        }
        match self.transfer {
            _ if self.cache_maintenance => Answer::Skip,
            Some(transfer) if self.write => Answer::Write(transfer),
            Some(transfer) => Answer::Read(transfer),
            None => Answer::External,
        }
    }
}

impl Transfer {
    /// The value of the general register after a load that read `data`, little endian. Bytes past the width are
    /// ignored, and missing ones are zero.
    pub fn complete_read(&self, data: &[u8]) -> u64 {
        let mut bytes = [0; 8];
        for (byte, &read) in bytes.iter_mut().zip(data).take(self.width.bytes()) {
            *byte = read;
        }
        complete_read(u64::from_le_bytes(bytes), self.width, self.sign, self.wide)
    }
}

/// The value of a general register after a load: the low `width` bytes of `value`, extended to 32 bits or, where
/// `wide`, to 64 bits. A write of a 32-bit register clears the upper half.
pub fn complete_read(value: u64, width: Width, sign: bool, wide: bool) -> u64 {
    let unused = u64::BITS - width.bits();
    let zero_extended = value << unused >> unused;
    let extended = match sign {
        true => (zero_extended.cast_signed() << unused >> unused).cast_unsigned(),
        false => zero_extended,
    };
    match wide {
        true => extended,
        false => extended & u64::from(u32::MAX),
    }
}

impl Exception {
    /// Decodes a syndrome. Bits that this crate has no use for are ignored, e.g. the condition of a WFI.
    pub fn decode(esr: u64) -> Self {
        let class = (esr >> EC_SHIFT) as u8 & 0x3f;
        let iss = esr as u32 & ISS_MASK;
        match class {
            class::WAIT => Self::Wait(Wait::decode(iss)),
            class::HVC => Self::Hvc(iss as u16),
            class::SMC => Self::Smc(iss as u16),
            class::SYSTEM => Self::System(SystemAccess::decode(iss)),
            class::INSTRUCTION_ABORT => Self::InstructionAbort(InstructionAbort::decode(iss)),
            class::DATA_ABORT => Self::DataAbort(DataAbort::decode(iss)),
            class::BREAKPOINT | class::STEP | class::WATCHPOINT | class::BRK => {
                Self::Debug { class, iss }
            }
            class => Self::Other { class, iss },
        }
    }

    /// The syndrome that decodes to this.
    pub fn encode(&self) -> u64 {
        let (class, iss) = match *self {
            Self::Wait(wait) => (class::WAIT, wait.encode()),
            Self::Hvc(imm) => (class::HVC, imm.into()),
            Self::Smc(imm) => (class::SMC, imm.into()),
            Self::System(access) => (class::SYSTEM, access.encode()),
            Self::InstructionAbort(abort) => (class::INSTRUCTION_ABORT, abort.encode()),
            Self::DataAbort(abort) => (class::DATA_ABORT, abort.encode()),
            Self::Debug { class, iss } | Self::Other { class, iss } => (class, iss),
        };
        syndrome(class, iss)
    }
}

/// The syndrome of a 32-bit instruction.
pub(crate) fn syndrome(class: u8, iss: u32) -> u64 {
    u64::from(class & 0x3f) << EC_SHIFT | IL | u64::from(iss & ISS_MASK)
}

/// `width` bits of `iss` from bit `low`.
fn field(iss: u32, low: u32, width: u32) -> u8 {
    (iss >> low) as u8 & ((1 << width) - 1)
}

fn flag(iss: u32, bit: u32) -> bool {
    iss >> bit & 1 == 1
}

impl Wait {
    fn decode(iss: u32) -> Self {
        let register = field(iss, 5, 5);
        match iss & 3 {
            0 => Self::Interrupt,
            1 => Self::Event,
            2 => Self::InterruptOrTimeout(register),
            _ => Self::EventOrTimeout(register),
        }
    }

    fn encode(self) -> u32 {
        let (kind, register) = match self {
            Self::Interrupt => return 0,
            Self::Event => return 1,
            Self::InterruptOrTimeout(register) => (2, register),
            Self::EventOrTimeout(register) => (3, register),
        };
        // RV: the register field is valid.
        u32::from(register) << 5 | 1 << 2 | kind
    }
}

impl SystemAccess {
    fn decode(iss: u32) -> Self {
        let reg = SysReg::new(
            field(iss, 20, 2),
            field(iss, 14, 3),
            field(iss, 10, 4),
            field(iss, 1, 4),
            field(iss, 17, 3),
        );
        Self { reg, rt: field(iss, 5, 5), read: flag(iss, 0) }
    }

    fn encode(self) -> u32 {
        let (op0, op1, crn, crm, op2) = self.reg.parts();
        u32::from(op0) << 20
            | u32::from(op2) << 17
            | u32::from(op1) << 14
            | u32::from(crn) << 10
            | u32::from(self.rt) << 5
            | u32::from(crm) << 1
            | u32::from(self.read)
    }
}

/// Bits of the syndromes of aborts.
mod bit {
    pub(super) const ISV: u32 = 24;
    pub(super) const SSE: u32 = 21;
    pub(super) const SF: u32 = 15;
    pub(super) const FNV: u32 = 10;
    pub(super) const CM: u32 = 8;
    pub(super) const S1PTW: u32 = 7;
    pub(super) const WNR: u32 = 6;
}

impl DataAbort {
    fn decode(iss: u32) -> Self {
        let transfer = flag(iss, bit::ISV).then(|| Transfer {
            width: Width::ALL[usize::from(field(iss, 22, 2))],
            sign: flag(iss, bit::SSE),
            register: field(iss, 16, 5),
            wide: flag(iss, bit::SF),
        });
        Self {
            transfer,
            write: flag(iss, bit::WNR),
            cache_maintenance: flag(iss, bit::CM),
            table_walk: flag(iss, bit::S1PTW),
            far_invalid: flag(iss, bit::FNV),
            status: field(iss, 0, 6),
        }
    }

    fn encode(self) -> u32 {
        let transfer = self.transfer.map_or(0, |transfer| {
            1 << bit::ISV
                | (transfer.width as u32) << 22
                | u32::from(transfer.sign) << bit::SSE
                | u32::from(transfer.register) << 16
                | u32::from(transfer.wide) << bit::SF
        });
        transfer
            | u32::from(self.far_invalid) << bit::FNV
            | u32::from(self.cache_maintenance) << bit::CM
            | u32::from(self.table_walk) << bit::S1PTW
            | u32::from(self.write) << bit::WNR
            | u32::from(self.status)
    }
}

impl InstructionAbort {
    fn decode(iss: u32) -> Self {
        let (table_walk, far_invalid) = (flag(iss, bit::S1PTW), flag(iss, bit::FNV));
        Self { table_walk, far_invalid, status: field(iss, 0, 6) }
    }

    fn encode(self) -> u32 {
        u32::from(self.far_invalid) << bit::FNV
            | u32::from(self.table_walk) << bit::S1PTW
            | u32::from(self.status)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A stage 2 translation fault at level 3.
    const TRANSLATION: u8 = 0b00_0111;

    fn transfer() -> impl Strategy<Value = Transfer> {
        (0..4usize, any::<bool>(), 0..32u8, any::<bool>()).prop_map(
            |(width, sign, register, wide)| {
                let width = Width::ALL[width];
                Transfer { width, sign, register, wide }
            },
        )
    }

    fn data_abort() -> impl Strategy<Value = DataAbort> {
        (proptest::option::of(transfer()), any::<[bool; 4]>(), 0..64u8).prop_map(
            |(transfer, [write, cache_maintenance, table_walk, far_invalid], status)| DataAbort {
                transfer,
                write,
                cache_maintenance,
                table_walk,
                far_invalid,
                status,
            },
        )
    }

    fn exception() -> impl Strategy<Value = Exception> {
        let wait = prop_oneof![
            Just(Wait::Interrupt),
            Just(Wait::Event),
            (0..32u8).prop_map(Wait::InterruptOrTimeout),
            (0..32u8).prop_map(Wait::EventOrTimeout),
        ];
        let system = (any::<u16>(), 0..32u8, any::<bool>()).prop_map(|(reg, rt, read)| {
            Exception::System(SystemAccess { reg: SysReg(reg), rt, read })
        });
        let fetch = (any::<bool>(), any::<bool>(), 0..64u8);
        let fetch = fetch.prop_map(|(table_walk, far_invalid, status)| {
            Exception::InstructionAbort(InstructionAbort { table_walk, far_invalid, status })
        });
        prop_oneof![
            wait.prop_map(Exception::Wait),
            any::<u16>().prop_map(Exception::Hvc),
            any::<u16>().prop_map(Exception::Smc),
            system,
            fetch,
            data_abort().prop_map(Exception::DataAbort),
            (0..1u32 << 25).prop_map(|iss| Exception::Debug { class: class::BRK, iss }),
            (0..1u32 << 25).prop_map(|iss| Exception::Other { class: 0x19, iss }),
        ]
    }

    /// A load, computed byte by byte instead of by shifts.
    fn expected(value: u64, width: Width, sign: bool, wide: bool) -> u64 {
        let read = &value.to_le_bytes()[..width.bytes()];
        let negative = sign && read[width.bytes() - 1] & 0x80 != 0;
        let mut bytes = [if negative { 0xff } else { 0 }; 8];
        bytes[..width.bytes()].copy_from_slice(read);
        if !wide {
            bytes[4..].fill(0);
        }
        u64::from_le_bytes(bytes)
    }

    proptest! {
        #[test]
        fn every_syndrome_decodes(esr: u64) {
            let exception = Exception::decode(esr);
            prop_assert_eq!(Exception::decode(exception.encode()), exception);
            if let Exception::DataAbort(abort) = exception {
                let _ = abort.answer();
            }
        }

        #[test]
        fn every_data_abort_decodes(iss in 0..1u64 << 25, upper: u32) {
            let esr = u64::from(upper) << 32 | syndrome(class::DATA_ABORT, iss as u32);
            let Exception::DataAbort(abort) = Exception::decode(esr) else {
                panic!("not a data abort");
            };
            if let Answer::Read(transfer) | Answer::Write(transfer) = abort.answer() {
                prop_assert!(!abort.table_walk && !abort.cache_maintenance);
                prop_assert!(transfer.register <= ZERO_REGISTER);
                prop_assert_eq!(iss >> 24 & 1, 1);
            }
        }

        #[test]
        fn an_exception_survives_its_encoding(exception in exception()) {
            prop_assert_eq!(Exception::decode(exception.encode()), exception);
        }

        #[test]
        fn a_valid_syndrome_survives_its_decoding(exception in exception()) {
            let esr = exception.encode();
            prop_assert_eq!(Exception::decode(esr).encode(), esr);
        }

        #[test]
        fn a_load_extends_as_the_register_says(value: u64, transfer in transfer()) {
            let Transfer { width, sign, wide, .. } = transfer;
            let read = complete_read(value, width, sign, wide);
            prop_assert_eq!(read, expected(value, width, sign, wide));
            prop_assert_eq!(transfer.complete_read(&value.to_le_bytes()), read);
        }
    }

    #[test]
    fn loads_of_every_width_and_sign() {
        for (width, sign, wide, value) in [
            (Width::Byte, false, false, 0x88),
            (Width::Byte, true, false, 0xffff_ff88),
            (Width::Byte, true, true, 0xffff_ffff_ffff_ff88),
            (Width::Half, false, false, 0x8788),
            (Width::Half, true, false, 0xffff_8788),
            (Width::Half, true, true, 0xffff_ffff_ffff_8788),
            (Width::Word, false, false, 0x8586_8788),
            (Width::Word, true, true, 0xffff_ffff_8586_8788),
            (Width::Double, false, true, 0x8182_8384_8586_8788),
        ] {
            let read = complete_read(0x8182_8384_8586_8788, width, sign, wide);
            assert_eq!(read, value, "{width:?}, sign {sign}, wide {wide}");
        }
    }

    #[test]
    fn short_data_reads_as_zero_above() {
        let transfer = Transfer { width: Width::Double, sign: true, register: 0, wide: true };
        assert_eq!(transfer.complete_read(&[0xff]), 0xff);
    }

    /// Syndromes as hardware makes them, assembled from the manual by hand.
    #[test]
    fn known_syndromes() {
        // ldrb w3, [x1], from a device.
        let load = Transfer { width: Width::Byte, sign: false, register: 3, wide: false };
        let Exception::DataAbort(abort) = Exception::decode(0x9303_0007) else { panic!() };
        assert_eq!(abort.answer(), Answer::Read(load));
        // str xzr, [x1].
        let store = Transfer { width: Width::Double, sign: false, register: 31, wide: true };
        let Exception::DataAbort(abort) = Exception::decode(0x93df_8047) else { panic!() };
        assert_eq!(abort.answer(), Answer::Write(store));
        // hvc #0, smc #7, brk #0x800, wfi.
        assert_eq!(Exception::decode(0x5a00_0000), Exception::Hvc(0));
        assert_eq!(Exception::decode(0x5e00_0007), Exception::Smc(7));
        let brk = Exception::Debug { class: class::BRK, iss: 0x800 };
        assert_eq!(Exception::decode(0xf200_0800), brk);
        assert_eq!(Exception::decode(0x07e0_0000), Exception::Wait(Wait::Interrupt));
        // msr oslar_el1, x0 and mrs x5, id_aa64pfr0_el1.
        let write = SystemAccess { reg: SysReg::new(2, 0, 1, 0, 4), rt: 0, read: false };
        assert_eq!(Exception::decode(0x6228_0400), Exception::System(write));
        let read = SystemAccess { reg: SysReg::new(3, 0, 0, 4, 0), rt: 5, read: true };
        assert_eq!(Exception::decode(0x6230_00a9), Exception::System(read));
    }

    #[test]
    fn what_is_no_device_access_gets_an_external_abort() {
        let transfer = Transfer { width: Width::Word, sign: false, register: 1, wide: false };
        let abort = DataAbort {
            transfer: Some(transfer),
            write: false,
            cache_maintenance: false,
            table_walk: false,
            far_invalid: false,
            status: TRANSLATION,
        };
        assert_eq!(abort.answer(), Answer::Read(transfer));
        assert_eq!(DataAbort { write: true, ..abort }.answer(), Answer::Write(transfer));
        let permission = DataAbort { status: 0b00_1111, write: true, ..abort };
        assert_eq!(permission.answer(), Answer::Write(transfer));
        assert_eq!(DataAbort { transfer: None, ..abort }.answer(), Answer::External);
        assert_eq!(DataAbort { table_walk: true, ..abort }.answer(), Answer::External);
        // An external abort, an address size fault, an alignment fault.
        for status in [0b01_0000, 0b00_0000, 0b10_0001] {
            assert_eq!(DataAbort { status, ..abort }.answer(), Answer::External);
        }
        let clean = DataAbort { cache_maintenance: true, write: true, transfer: None, ..abort };
        assert_eq!(clean.answer(), Answer::Skip);
    }
}
