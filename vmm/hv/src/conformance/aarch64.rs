//! Guest programs of the suite for aarch64: EL1 with the MMU off, so accesses to memory are aligned; X0 is the argument.

use super::pages::Pages;
use super::{DATA, Extended, SECOND_MMIO};
use crate::{BootState, gic};

/// A64 instructions.
pub(super) type Program = [u32];

/// GPA of the guest's memory, above the interrupt controller, and not 0, which Hypervisor.framework may reject.
pub(super) const BASE: u64 = 0x8000_0000;

/// The entry point and the exception vectors.
const CODE: usize = 0x1_0000;
/// The vector of a synchronous exception at the same level.
const SYNCHRONOUS: usize = CODE + 0x200;
/// What a second vCPU runs.
const SECOND: usize = 0x1_8000;

/// Loads a program into memory.
pub(super) fn load(memory: &Pages, program: &Program, argument: u64) -> BootState {
    // The programs have these as immediate values.
    const { assert!(gic::DISTRIBUTOR == 0x800_0000 && gic::REDISTRIBUTORS == 0xa00_0000) };
    const { assert!(SECOND < DATA && DATA == 0x4_0000 && SECOND_MMIO == 0x8010_0000) };
    assert!(program.len() * 4 <= SYNCHRONOUS - CODE, "the program reaches into the vector");
    for (at, code) in [(CODE, program), (SYNCHRONOUS, HANDLER), (SECOND, STARTED)] {
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write(at, &bytes);
    }
    BootState::Start { entry: BASE + CODE as u64, argument, page_table: 0 }
}

/// For 1, 2, 4 and 8 bytes: reads `[x0]`, writes what it read to `[x0 + 8]`.
pub(super) const COPY_EVERY_WIDTH: &Program = &[
    0x3940_0001, // ldrb w1, [x0]
    0x3900_2001, // strb w1, [x0, #8]
    0x7940_0001, // ldrh w1, [x0]
    0x7900_1001, // strh w1, [x0, #8]
    0xb940_0001, // ldr w1, [x0]
    0xb900_0801, // str w1, [x0, #8]
    0xf940_0001, // ldr x1, [x0]
    0xf900_0401, // str x1, [x0, #8]
    0x1400_0000, // b .
];

/// Reads `[x0]` with sign or zero extension, writes the whole register to `[x0 + 8]`, as in [`EXTENDED`].
pub(super) const EXTEND: &Program = &[
    0x3980_0001, // ldrsb x1, [x0]
    0xf900_0401, // str x1, [x0, #8]
    0x39c0_0001, // ldrsb w1, [x0]
    0xf900_0401, // str x1, [x0, #8]
    0x7980_0001, // ldrsh x1, [x0]
    0xf900_0401, // str x1, [x0, #8]
    0x79c0_0001, // ldrsh w1, [x0]
    0xf900_0401, // str x1, [x0, #8]
    0xb980_0001, // ldrsw x1, [x0]
    0xf900_0401, // str x1, [x0, #8]
    0x3940_0001, // ldrb w1, [x0]
    0xf900_0401, // str x1, [x0, #8]
    0x9280_0001, // mov x1, #0xffffffffffffffff
    0x7940_0001, // ldrh w1, [x0]
    0xf900_0401, // str x1, [x0, #8]
    0x9280_0001, // mov x1, #0xffffffffffffffff
    0xb940_0001, // ldr w1, [x0]
    0xf900_0401, // str x1, [x0, #8]
    0xf940_001f, // ldr xzr, [x0]
    0xf900_041f, // str xzr, [x0, #8]
    0x1400_0000, // b .
];

/// What [`EXTEND`] reads and writes.
pub(super) const EXTENDED: &[Extended] = &[
    Extended { read: &[0x80], written: 0xffff_ffff_ffff_ff80 },
    Extended { read: &[0x80], written: 0xffff_ff80 },
    Extended { read: &[0x01, 0x80], written: 0xffff_ffff_ffff_8001 },
    Extended { read: &[0x01, 0x80], written: 0xffff_8001 },
    Extended { read: &[1, 0, 0, 0x80], written: 0xffff_ffff_8000_0001 },
    Extended { read: &[0x80], written: 0x80 },
    Extended { read: &[0x01, 0x80], written: 0x8001 },
    Extended { read: &[1, 0, 0, 0x80], written: 0x8000_0001 },
    Extended { read: &[0xff; 8], written: 0 },
];

/// There are no ports.
pub(super) const COPY_PORT: Option<&Program> = None;

/// Endlessly copies 4 bytes from `[x0]` to `[x0 + 64 KiB]`.
pub(super) const COPY_FOREVER: &Program = &[
    0xd2a0_0022, // mov x2, #0x10000
    0xb940_0001, // ldr w1, [x0]
    0xb822_6801, // str w1, [x0, x2]
    0x17ff_fffe, // b . - 8
];

/// Adds one to the 4 bytes at `[x0]`.
pub(super) const INCREMENT: &Program = &[
    0xb940_0001, // ldr w1, [x0]
    0x1100_0421, // add w1, w1, #0x1
    0xb900_0001, // str w1, [x0]
    0x1400_0000, // b .
];

/// Writes to `[x0]`, then to `[x0 + 4 KiB]`.
pub(super) const WRITE_TWO_PAGES: &Program = &[
    0xb900_001f, // str wzr, [x0]
    0xd282_0002, // mov x2, #0x1000
    0xb822_681f, // str wzr, [x0, x2]
    0x1400_0000, // b .
];

/// Writes 0, 1, 2, … to `[x0]`.
pub(super) const COUNT: &Program = &[
    0x5280_0001, // mov w1, #0x0
    0xb900_0001, // str w1, [x0]
    0x1100_0421, // add w1, w1, #0x1
    0x17ff_fffe, // b . - 8
];

/// Writes to `[x0]`, then loops forever.
pub(super) const WRITE_AND_SPIN: &Program = &[
    0xb900_001f, // str wzr, [x0]
    0x1400_0000, // b .
];

/// Endlessly writes the virtual counter to `[x0]`.
pub(super) const READ_CLOCK: &Program = &[
    0xd503_3fdf, // isb
    0xd53b_e041, // mrs x1, cntvct_el0
    0xf900_0001, // str x1, [x0]
    0x17ff_fffd, // b . - 12
];

/// Sets the physical and the virtual timer, each masked, writes to `[x0]`, reads compare value and control of each and
/// writes them to `[x0]`, as they are here.
pub(super) const TIMERS: Option<(&Program, [u64; 4])> = Some((SET_TIMERS, [0x1234, 3, 0x5678, 3]));

const SET_TIMERS: &Program = &[
    0xd282_4681, // mov x1, #0x1234
    0xd51b_e241, // msr cntp_cval_el0, x1
    0xd28a_cf01, // mov x1, #0x5678
    0xd51b_e341, // msr cntv_cval_el0, x1
    0xd280_0061, // mov x1, #0x3
    0xd51b_e221, // msr cntp_ctl_el0, x1
    0xd51b_e321, // msr cntv_ctl_el0, x1
    0xd503_3fdf, // isb
    0xb900_001f, // str wzr, [x0]
    0xd53b_e241, // mrs x1, cntp_cval_el0
    0xf900_0001, // str x1, [x0]
    0xd53b_e221, // mrs x1, cntp_ctl_el0
    0x9240_0421, // and x1, x1, #0x3
    0xf900_0001, // str x1, [x0]
    0xd53b_e341, // mrs x1, cntv_cval_el0
    0xf900_0001, // str x1, [x0]
    0xd53b_e321, // mrs x1, cntv_ctl_el0
    0x9240_0421, // and x1, x1, #0x3
    0xf900_0001, // str x1, [x0]
    0x1400_0000, // b .
];

/// PSCI SYSTEM_RESET.
pub(super) const RESET: &Program = &[
    0x52b0_8000, // mov w0, #0x84000000
    0x1100_2400, // add w0, w0, #0x9
    0xd400_0002, // hvc #0x0
    0x1400_0000, // b .
];

/// PSCI SYSTEM_OFF.
pub(super) const SHUTDOWN: Option<&Program> = Some(&[
    0x52b0_8000, // mov w0, #0x84000000
    0x1100_2000, // add w0, w0, #0x8
    0xd400_0002, // hvc #0x0
    0x1400_0000, // b .
]);

/// Writes to `[x0]`, then faults for ever: there is no memory at the vector.
pub(super) const FAULT: Option<&Program> = Some(&[
    0xb900_001f, // str wzr, [x0]
    0xd518_c01f, // msr vbar_el1, xzr
    0xd503_3fdf, // isb
    0x0000_0000, // udf #0
]);

/// Loads a pair from `[x0]`, for which the processor has no syndrome: [`HANDLER`] gets the abort.
pub(super) const ABORT: Option<(&Program, u32)> = Some((LOAD_PAIR, EXTERNAL_ABORT));

/// A data abort at the same level, synchronous and external.
const EXTERNAL_ABORT: u32 = 0x25 << 26 | 0x10;

const LOAD_PAIR: &Program = &[
    0x1000_0001, // adr x1, .
    0xd518_c001, // msr vbar_el1, x1
    0xd503_3fdf, // isb
    0x2940_0c02, // ldp w2, w3, [x0]
    0x1400_0000, // b .
];

/// The vector of a synchronous exception, with the vectors at [`CODE`]: writes class and fault status of ESR_EL1 to `[x0]`.
const HANDLER: &Program = &[
    0xd538_5201, // mrs x1, esr_el1
    0x5280_07e2, // mov w2, #0x3f
    0x72bf_8002, // movk w2, #0xfc00, lsl #16
    0x0a02_0021, // and w1, w1, w2
    0xb900_0001, // str w1, [x0]
    0x1400_0000, // b .
];

/// Starts vCPU 1 by PSCI CPU_ON, waits until it has written to memory, and writes that to `[x0]`.
pub(super) const START_SECOND: &Program = &[
    0xaa00_03e4, // mov x4, x0
    0xd2b0_0085, // mov x5, #0x80040000
    0xaa05_03e3, // mov x3, x5
    0xd2b8_8000, // mov x0, #0xc4000000
    0xf280_0060, // movk x0, #0x3
    0xd280_0021, // mov x1, #0x1
    0xd2b0_0022, // mov x2, #0x80010000
    0xf290_0002, // movk x2, #0x8000
    0xd400_0002, // hvc #0x0
    0xb940_00a1, // ldr w1, [x5]
    0x34ff_ffe1, // cbz w1, . - 4
    0xb900_0081, // str w1, [x4]
    0x1400_0000, // b .
];

/// What the second vCPU runs: writes 0x5a to [`DATA`], its argument, then 0, 1, 2, … to [`SECOND_MMIO`].
const STARTED: &Program = &[
    0x5280_0b41, // mov w1, #0x5a
    0xb900_0001, // str w1, [x0]
    0xd2b0_0202, // mov x2, #0x80100000
    0x5280_0001, // mov w1, #0x0
    0xb900_0041, // str w1, [x2]
    0x1100_0421, // add w1, w1, #0x1
    0x17ff_fffe, // b . - 8
];

/// Makes SPI 16 an edge, writes to `[x0]`, waits until the distributor has it pending, and writes the 32 pending bits of
/// SPIs 0 to 31 to `[x0]`. Interrupts stay off.
pub(super) const WAIT_FOR_INTERRUPT: &Program = &[
    0xd2a1_0002, // mov x2, #0x8000000
    0x5280_0041, // mov w1, #0x2
    0xb90c_0c41, // str w1, [x2, #0xc0c]
    0xd503_3f9f, // dsb sy
    0xb900_001f, // str wzr, [x0]
    0xb942_0441, // ldr w1, [x2, #0x204]
    0x34ff_ffe1, // cbz w1, . - 4
    0xb900_0001, // str w1, [x0]
    0x1400_0000, // b .
];

/// Sets registers of the distributor, the redistributor and the CPU interface, writes to `[x0]`, reads the registers and
/// writes them to `[x0]`: [`CONTROLLER_STATE`].
pub(super) const SET_CONTROLLER: &Program = &[
    0xd2a1_0002, // mov x2, #0x8000000
    0xd2a1_4003, // mov x3, #0xa000000
    0x5280_0241, // mov w1, #0x12
    0xb900_0041, // str w1, [x2]
    0x5280_0101, // mov w1, #0x8
    0xb90c_0c41, // str w1, [x2, #0xc0c]
    0x52a0_0041, // mov w1, #0x20000
    0xb902_0441, // str w1, [x2, #0x204]
    0xb901_0441, // str w1, [x2, #0x104]
    0x52a0_0021, // mov w1, #0x10000
    0xb903_0441, // str w1, [x2, #0x304]
    0x5294_0001, // mov w1, #0xa000
    0xb904_3041, // str w1, [x2, #0x430]
    0x9140_1844, // add x4, x2, #0x6, lsl #12
    0x5280_0021, // mov w1, #0x1
    0xf900_c481, // str x1, [x4, #0x188]
    0x9140_4064, // add x4, x3, #0x10, lsl #12
    0x52a1_0001, // mov w1, #0x8000000
    0xb901_0081, // str w1, [x4, #0x100]
    0x5280_0a01, // mov w1, #0x50
    0x3910_6c81, // strb w1, [x4, #0x41b]
    0x5280_1e01, // mov w1, #0xf0
    0xd518_4601, // msr icc_pmr_el1, x1
    0x5280_0021, // mov w1, #0x1
    0xd518_cce1, // msr icc_igrpen1_el1, x1
    0xd503_3fdf, // isb
    0xd503_3f9f, // dsb sy
    0xb900_001f, // str wzr, [x0]
    0xb940_0041, // ldr w1, [x2]
    0x121f_0021, // and w1, w1, #0x2
    0xb900_0001, // str w1, [x0]
    0xb94c_0c41, // ldr w1, [x2, #0xc0c]
    0xb900_0001, // str w1, [x0]
    0xb942_0441, // ldr w1, [x2, #0x204]
    0xb900_0001, // str w1, [x0]
    0xb941_0441, // ldr w1, [x2, #0x104]
    0xb900_0001, // str w1, [x0]
    0xb943_0441, // ldr w1, [x2, #0x304]
    0xb900_0001, // str w1, [x0]
    0xb944_3041, // ldr w1, [x2, #0x430]
    0xb900_0001, // str w1, [x0]
    0x9140_1844, // add x4, x2, #0x6, lsl #12
    0xf940_c481, // ldr x1, [x4, #0x188]
    0xb900_0001, // str w1, [x0]
    0x9140_4064, // add x4, x3, #0x10, lsl #12
    0xb941_0081, // ldr w1, [x4, #0x100]
    0x1205_0021, // and w1, w1, #0x8000000
    0xb900_0001, // str w1, [x0]
    0x3950_6c81, // ldrb w1, [x4, #0x41b]
    0xb900_0001, // str w1, [x0]
    0xd538_4601, // mrs x1, icc_pmr_el1
    0xb900_0001, // str w1, [x0]
    0xd538_cce1, // mrs x1, icc_igrpen1_el1
    0xb900_0001, // str w1, [x0]
    0x1400_0000, // b .
];

/// GICD_CTLR.EnableGrp1; of SPI 17: GICD_ICFGR3, ISPENDR1 and ISENABLER1; GICD_ISACTIVER1 of SPI 16; GICD_IPRIORITYR12 and
/// IROUTER49 of SPI 17; GICR_ISENABLER0 and the priority of PPI 11; ICC_PMR_EL1, ICC_IGRPEN1_EL1.
pub(super) const CONTROLLER_STATE: &[u32] =
    &[0x2, 0x8, 1 << 17, 1 << 17, 1 << 16, 0xa000, 1, 1 << 27, 0x50, 0xf0, 1];
