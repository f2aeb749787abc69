//! Trapped system registers: which are served, which are undefined; and the ID registers that a guest sees.
//!
//! Hypervisor.framework serves most registers itself. The rest traps, and a guest must find the
//! same there as on hardware without these features: Linux writes the OS lock at boot and reads
//! the whole ID space, whatever the ID registers say.

/// The encoding of a system register: Op0, Op1, CRn, CRm and Op2 in the order and the 16 bits that the
/// framework and KVM use as well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SysReg(pub u16);

impl SysReg {
    /// The register with these parts; bits past their widths are ignored.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        let (op0, op1, crn) = (op0 as u16 & 3, op1 as u16 & 7, crn as u16 & 15);
        Self(op0 << 14 | op1 << 11 | crn << 7 | (crm as u16 & 15) << 3 | op2 as u16 & 7)
    }

    /// Op0, Op1, CRn, CRm and Op2.
    pub const fn parts(self) -> (u8, u8, u8, u8, u8) {
        let Self(id) = self;
        (
            (id >> 14) as u8,
            (id >> 11) as u8 & 7,
            (id >> 7) as u8 & 15,
            (id >> 3) as u8 & 15,
            id as u8 & 7,
        )
    }
}

impl std::fmt::Debug for SysReg {
    /// The assembler's generic name, e.g. `S3_0_C0_C4_0`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (op0, op1, crn, crm, op2) = self.parts();
        write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}")
    }
}

/// How a trapped access is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The read returns this.
    Value(u64),
    /// The read returns the guest's counter.
    Counter,
    /// The write has no effect.
    Ignore,
    /// The instruction is undefined.
    Undefined,
}

const OSLAR_EL1: SysReg = SysReg::new(2, 0, 1, 0, 4);
const OSLSR_EL1: SysReg = SysReg::new(2, 0, 1, 1, 4);
const OSDLR_EL1: SysReg = SysReg::new(2, 0, 1, 3, 4);
const DBGPRCR_EL1: SysReg = SysReg::new(2, 0, 1, 4, 4);
const MDRAR_EL1: SysReg = SysReg::new(2, 0, 1, 0, 0);
const MDCCINT_EL1: SysReg = SysReg::new(2, 0, 0, 2, 0);
const MDCCSR_EL0: SysReg = SysReg::new(2, 3, 0, 1, 0);
const DBGAUTHSTATUS_EL1: SysReg = SysReg::new(2, 0, 7, 14, 6);
const ACTLR_EL1: SysReg = SysReg::new(3, 0, 1, 0, 1);
const CNTPCT_EL0: SysReg = SysReg::new(3, 3, 14, 0, 1);
const CNTPCTSS_EL0: SysReg = SysReg::new(3, 3, 14, 0, 5);
const AIDR_EL1: SysReg = SysReg::new(3, 1, 0, 0, 7);
const REVIDR_EL1: SysReg = SysReg::new(3, 0, 0, 0, 6);

/// OSLSR_EL1: the OS lock is implemented (bit 1 of OSLM) and unlocked.
const OS_LOCK_IMPLEMENTED: u64 = 1 << 3;

/// Which directions a register has.
enum Kind {
    ReadWrite,
    ReadOnly(u64),
    WriteOnly,
    Counter,
    None,
}

/// The answer to a trapped access.
pub fn answer(reg: SysReg, read: bool) -> Answer {
    match (kind(reg), read) {
        (Kind::ReadWrite, true) => Answer::Value(0),
        (Kind::ReadOnly(value), true) => Answer::Value(value),
        (Kind::Counter, true) => Answer::Counter,
        (Kind::ReadWrite | Kind::WriteOnly, false) => Answer::Ignore,
        _ => Answer::Undefined,
    }
}

fn kind(reg: SysReg) -> Kind {
    match reg {
        OSLAR_EL1 => Kind::WriteOnly,
        OSLSR_EL1 => Kind::ReadOnly(OS_LOCK_IMPLEMENTED),
        OSDLR_EL1 | DBGPRCR_EL1 | MDCCINT_EL1 | ACTLR_EL1 => Kind::ReadWrite,
        MDRAR_EL1 | MDCCSR_EL0 | DBGAUTHSTATUS_EL1 | AIDR_EL1 | REVIDR_EL1 => Kind::ReadOnly(0),
        // There is no offset between the physical and the virtual counter of a guest.
        CNTPCT_EL0 | CNTPCTSS_EL0 => Kind::Counter,
        _ if is_id_space(reg) => Kind::ReadOnly(0),
        _ => kind_by_range(reg),
    }
}

/// The space of ID registers, where unallocated encodings read as zero.
fn is_id_space(reg: SysReg) -> bool {
    matches!(reg.parts(), (3, 0, 0, 1..=7, _))
}

/// Limited ordering regions and performance monitors: without these features, nothing uses them.
fn kind_by_range(reg: SysReg) -> Kind {
    match reg.parts() {
        // LORID_EL1.
        (3, 0, 10, 4, 7) => Kind::ReadOnly(0),
        // LORSA_EL1, LOREA_EL1, LORN_EL1, LORC_EL1.
        (3, 0, 10, 4, 0..=3) => Kind::ReadWrite,
        // PMSWINC_EL0.
        (3, 3, 9, 12, 4) => Kind::WriteOnly,
        // PMCEID0_EL0, PMCEID1_EL0, and PMMIR_EL1.
        (3, 3, 9, 12, 6 | 7) | (3, 0, 9, 14, 6) => Kind::ReadOnly(0),
        // PMCR_EL0 to PMOVSSET_EL0, PMINTENSET_EL1 and PMINTENCLR_EL1.
        (3, 3, 9, 12..=14, _) | (3, 0, 9, 14, 1 | 2) => Kind::ReadWrite,
        // PMEVCNTR<n>_EL0, PMEVTYPER<n>_EL0 and PMCCFILTR_EL0.
        (3, 3, 14, 8..=15, _) => Kind::ReadWrite,
        _ => Kind::None,
    }
}

/// ID_AA64PFR0_EL1.
pub const ID_AA64PFR0_EL1: SysReg = SysReg::new(3, 0, 0, 4, 0);
/// ID_AA64PFR1_EL1.
pub const ID_AA64PFR1_EL1: SysReg = SysReg::new(3, 0, 0, 4, 1);
/// ID_AA64DFR0_EL1.
pub const ID_AA64DFR0_EL1: SysReg = SysReg::new(3, 0, 0, 5, 0);
/// ID_AA64MMFR0_EL1.
pub const ID_AA64MMFR0_EL1: SysReg = SysReg::new(3, 0, 0, 7, 0);
/// ID_AA64MMFR1_EL1.
pub const ID_AA64MMFR1_EL1: SysReg = SysReg::new(3, 0, 0, 7, 1);
/// ID_AA64MMFR2_EL1.
pub const ID_AA64MMFR2_EL1: SysReg = SysReg::new(3, 0, 0, 7, 2);

/// The ID registers that a guest sees changed: see [`guest_id`].
pub const ID_REGISTERS: [SysReg; 6] = [
    ID_AA64PFR0_EL1,
    ID_AA64PFR1_EL1,
    ID_AA64DFR0_EL1,
    ID_AA64MMFR0_EL1,
    ID_AA64MMFR1_EL1,
    ID_AA64MMFR2_EL1,
];

/// The value of an ID register that a guest sees, from the framework's.
///
/// The guest has a GICv3 with system registers. It has no EL2, no SVE and SME (whose registers are not saved), no
/// memory tags, no activity and performance monitors, no trace and no statistical profiling. Its physical addresses
/// have as many bits as the VM's.
pub fn guest_id(reg: SysReg, value: u64, ipa_bits: u32) -> u64 {
    match reg {
        ID_AA64PFR0_EL1 => {
            // EL2, SVE, SEL2, MPAM, AMU.
            let value = clear(value, &[8, 32, 36, 40, 44]);
            with_field(value, 24, 1)
        }
        // MTE, MPAM_frac, SME, MTE_frac, MTEX.
        ID_AA64PFR1_EL1 => clear(value, &[8, 16, 24, 40, 52]),
        // TraceVer, PMUVer, PMSVer, TraceFilt, TraceBuffer, BRBE.
        ID_AA64DFR0_EL1 => clear(value, &[4, 8, 32, 40, 44, 52]),
        ID_AA64MMFR0_EL1 => with_field(value, 0, pa_range(ipa_bits).min(value & 0xf)),
        // VH, LO.
        ID_AA64MMFR1_EL1 => clear(value, &[8, 16]),
        // NV.
        ID_AA64MMFR2_EL1 => clear(value, &[24]),
        _ => value,
    }
}

/// PARange for at least `bits` of physical addresses.
fn pa_range(bits: u32) -> u64 {
    match bits {
        0..=32 => 0,
        33..=36 => 1,
        37..=40 => 2,
        41..=42 => 3,
        43..=44 => 4,
        45..=48 => 5,
        49..=52 => 6,
        _ => 7,
    }
}

/// `value` with the 4-bit fields from these bits set to zero.
fn clear(value: u64, fields: &[u32]) -> u64 {
    fields.iter().fold(value, |value, &low| with_field(value, low, 0))
}

fn with_field(value: u64, low: u32, field: u64) -> u64 {
    value & !(0xf << low) | field << low
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_encoding_survives_its_parts(id: u16) {
            let reg = SysReg(id);
            let (op0, op1, crn, crm, op2) = reg.parts();
            prop_assert_eq!(SysReg::new(op0, op1, crn, crm, op2), reg);
        }

        #[test]
        fn every_access_has_an_answer(id: u16) {
            let (read, write) = (answer(SysReg(id), true), answer(SysReg(id), false));
            prop_assert!(read != Answer::Ignore);
            prop_assert!(matches!(write, Answer::Ignore | Answer::Undefined));
        }

        #[test]
        fn a_guest_has_no_feature_that_its_host_lacks(value: u64, ipa_bits in 32..57u32) {
            for reg in ID_REGISTERS {
                let guest = guest_id(reg, value, ipa_bits);
                for low in (0..64).step_by(4).filter(|&low| (reg, low) != (ID_AA64PFR0_EL1, 24)) {
                    prop_assert!(guest >> low & 0xf <= value >> low & 0xf);
                }
                prop_assert_eq!(guest_id(reg, guest, ipa_bits), guest);
            }
        }
    }

    #[test]
    fn what_linux_touches_at_boot_is_served() {
        let served = [(OSLAR_EL1, false), (OSDLR_EL1, false), (MDCCINT_EL1, false)];
        for (reg, read) in served {
            assert_eq!(answer(reg, read), Answer::Ignore, "{reg:?}");
        }
        assert_eq!(answer(OSLSR_EL1, true), Answer::Value(8));
        // ID_AA64ISAR3_EL1, unknown to older frameworks; PMUSERENR_EL0; LORC_EL1.
        assert_eq!(answer(SysReg::new(3, 0, 0, 6, 3), true), Answer::Value(0));
        assert_eq!(answer(SysReg::new(3, 3, 9, 14, 0), false), Answer::Ignore);
        assert_eq!(answer(SysReg::new(3, 0, 10, 4, 3), false), Answer::Ignore);
        assert_eq!(answer(CNTPCT_EL0, true), Answer::Counter);
    }

    #[test]
    fn what_does_not_exist_is_undefined() {
        // HCR_EL2, an implementation defined register, a write to an ID register, a read of a write-only one.
        for (reg, read) in [
            (SysReg::new(3, 4, 1, 1, 0), true),
            (SysReg::new(3, 0, 15, 0, 0), true),
            (ID_AA64PFR0_EL1, false),
            (OSLAR_EL1, true),
            (CNTPCT_EL0, false),
        ] {
            assert_eq!(answer(reg, read), Answer::Undefined, "{reg:?}");
        }
    }

    #[test]
    fn the_encodings_are_the_frameworks() {
        assert_eq!(ID_AA64PFR0_EL1.0, 0xc020);
        assert_eq!(ID_AA64MMFR2_EL1.0, 0xc03a);
        assert_eq!(format!("{ID_AA64MMFR0_EL1:?}"), "S3_0_C0_C7_0");
    }

    #[test]
    fn physical_addresses_reach_as_far_as_the_vms() {
        let host = 5;
        for (bits, range) in [(32, 0), (33, 1), (36, 1), (40, 2), (42, 3), (44, 4), (48, 5)] {
            assert_eq!(guest_id(ID_AA64MMFR0_EL1, host, bits), range, "{bits} bits");
        }
        assert_eq!(guest_id(ID_AA64MMFR0_EL1, 1, 40), 1, "no more than the host's");
        let features = guest_id(ID_AA64PFR0_EL1, u64::MAX, 36);
        assert_eq!(features, 0xffff_0000_f1ff_f0ff);
    }
}
