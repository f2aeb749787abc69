//! Registers, MSRs and the local APIC of a vCPU at boot.

use boxlite_hv::{BootState, Error, Result};
use kvm_bindings::{
    KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_segment,
};
use kvm_ioctls::{Kvm, VcpuFd};

use super::cpuid::{self, Shape};
use crate::failed;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set; interrupts are off.
const RFLAGS_RESERVED: u64 = 2;

const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const DELIVERY_MODE: u32 = 0x700;
const DELIVERY_NMI: u32 = 0x400;
const DELIVERY_EXTINT: u32 = 0x700;

/// Puts a new vCPU into the state it boots from.
pub(super) fn vcpu(kvm: &Kvm, fd: &VcpuFd, shape: Shape, boot: &BootState) -> Result<()> {
    fd.set_cpuid2(&cpuid::table(kvm, shape)?).map_err(failed("KVM_SET_CPUID2"))?;
    msrs(fd)?;
    local_interrupts(fd)?;
    match *boot {
        BootState::Start { entry, argument, page_table } => {
            long_mode(fd, page_table)?;
            let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
            fd.set_fpu(&fpu).map_err(failed("KVM_SET_FPU"))?;
            let regs = kvm_regs {
                rip: entry,
                rsi: argument,
                rflags: RFLAGS_RESERVED,
                ..Default::default()
            };
            fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))
        }
        // KVM parks every vCPU but 0 by itself.
        BootState::Parked => fd
            .set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_UNINITIALIZED })
            .map_err(failed("KVM_SET_MP_STATE")),
    }
}

fn msrs(fd: &VcpuFd) -> Result<()> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        // Memory is write-back unless the page tables say otherwise, as firmware leaves it.
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ])
    .map_err(|_| Error::Missing("room for two MSRs"))?;
    fd.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
    Ok(())
}

/// 64-bit mode with flat segments (Linux, Documentation/arch/x86/boot.rst, 64-bit protocol). The
/// descriptor table is empty: the kernel loads its own before it loads a segment.
fn long_mode(fd: &VcpuFd, page_table: u64) -> Result<()> {
    const BOOT_CS: u16 = 0x10;
    const BOOT_DS: u16 = 0x18;
    let flat = |selector, type_, long: bool| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        l: long.into(),
        db: (!long).into(),
        g: 1,
        ..Default::default()
    };
    let data = flat(BOOT_DS, 0x3, false);
    let mut sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    sregs.cs = flat(BOOT_CS, 0xb, true);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { type_: 0xb, present: 1, limit: 0xffff, ..Default::default() };
    sregs.cr3 = page_table;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer = EFER_LME | EFER_LMA;
    fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))
}

/// LINT0 takes the legacy interrupt controller, LINT1 non-maskable interrupts, as firmware sets them.
fn local_interrupts(fd: &VcpuFd) -> Result<()> {
    let mut lapic = fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    set_delivery(&mut lapic, APIC_LVT0, DELIVERY_EXTINT);
    set_delivery(&mut lapic, APIC_LVT1, DELIVERY_NMI);
    fd.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))
}

fn set_delivery(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes = &mut lapic.regs[register..register + 4];
    let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte as u8));
    let value = (value & !DELIVERY_MODE) | mode;
    for (byte, new) in bytes.iter_mut().zip(value.to_le_bytes()) {
        *byte = new as _;
    }
}
