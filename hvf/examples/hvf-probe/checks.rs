//! The checks, one for each assumption.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char};
use std::sync::mpsc;
use std::time::Duration;

use applevisor::gic::GicConfig;
use applevisor::vm::VirtualMachineConfig;
use applevisor_sys::{hv_reg_t as Reg, hv_sys_reg_t as SystemRegister};
use boxlite_hv::{BootState, Exit, Perms, Vcpu, Vm, VmConfig, gic};
use boxlite_hvf::sysreg::{self, SysReg};
use boxlite_hvf::{HvfVm, layout};

use crate::guest::{self, BASE, Cpu, Machine, Result};

/// An assumption.
struct Check {
    what: &'static str,
    run: fn() -> Result<Finding>,
    /// What to change if it is wrong.
    otherwise: &'static str,
}

struct Finding {
    found: String,
    /// `None` where this crate does not depend on it.
    as_assumed: Option<bool>,
}

fn finding(as_assumed: impl Into<Option<bool>>, found: impl Into<String>) -> Result<Finding> {
    Ok(Finding { found: found.into(), as_assumed: as_assumed.into() })
}

const CHECKS: [Check; 15] = [
    Check {
        what: "address sizes",
        run: address_sizes,
        otherwise: "layout::ipa_bits: boxes with much memory do not fit",
    },
    Check {
        what: "GIC sizes and alignments",
        run: gic_limits,
        otherwise: "boxlite_hv::gic: move the distributor or the redistributors",
    },
    Check { what: "a mapping at GPA 0", run: map_zero, otherwise: "nothing: memory is elsewhere" },
    Check {
        what: "registers of a new vCPU",
        run: reset_registers,
        otherwise: "setup::start: set what differs",
    },
    Check {
        what: "writes of ID registers",
        run: id_registers,
        otherwise: "setup::id_registers: the guest sees these features; answer their traps in sysreg",
    },
    Check {
        what: "redistributors in the order of creation",
        run: redistributors,
        otherwise: "setup::vcpu and the device tree: say where each redistributor is",
    },
    Check {
        what: "code that was written before the entry",
        run: instruction_cache,
        otherwise: "vmm/machine/src/build.rs: sys_icache_invalidate after loading the kernel",
    },
    Check {
        what: "an SPI from another thread than a vCPU's",
        run: spi_from_another_thread,
        otherwise: "gic::line: queue interrupts to a vCPU's thread",
    },
    Check {
        what: "a pending SPI in the saved state",
        run: pending_in_state,
        otherwise: "state::VmState: save ISPENDR and set it again",
    },
    Check {
        what: "exits of WFI",
        run: wait_exits,
        otherwise: "vcpu::wait: it is the common case then; wake it from gic::line",
    },
    Check {
        what: "exits of the virtual timer",
        run: timer_exits,
        otherwise: "vcpu::timer_fired: it delivers the interrupt then",
    },
    Check {
        what: "the guest's counter is mach_absolute_time",
        run: counter,
        otherwise: "sys::counter: find the clock that the framework subtracts the offset from",
    },
    Check {
        what: "an exit asked for before the entry",
        run: sticky_exit,
        otherwise: "kick: a kick can be lost; repeat hv_vcpus_exit until the flag is taken",
    },
    Check {
        what: "vectors over save and restore",
        run: vectors,
        otherwise: "sys::set_vector: the value does not arrive in V0",
    },
    Check {
        what: "a vCPU's run in a sandbox made after hv_vm_create",
        run: sandbox,
        otherwise: "the sandbox profile: allow what the framework needs",
    },
];

/// Runs all checks, prints their table, and returns how many assumptions are wrong.
pub(crate) fn run_all() -> usize {
    let mut wrong = Vec::new();
    for check in &CHECKS {
        let (mark, found) = match (check.run)() {
            Ok(Finding { found, as_assumed: Some(true) }) => ("as assumed", found),
            Ok(Finding { found, as_assumed: None }) => ("for the record", found),
            Ok(Finding { found, as_assumed: Some(false) }) => ("DIFFERS", found),
            Err(error) => ("FAILED", error),
        };
        println!("{mark:14} | {:50} | {found}", check.what);
        if matches!(mark, "DIFFERS" | "FAILED") {
            wrong.push(check);
        }
    }
    for check in &wrong {
        println!("\n{}: {}", check.what, check.otherwise);
    }
    wrong.len()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn address_sizes() -> Result<Finding> {
    let default = VirtualMachineConfig::get_default_ipa_size().map_err(text)?;
    let max = VirtualMachineConfig::get_max_ipa_size().map_err(text)?;
    finding(default >= 36 && max >= default, format!("default {default} bits, at most {max}"))
}

fn gic_limits() -> Result<Finding> {
    let size = |value: applevisor::error::Result<usize>| value.map(|v| v as u64).map_err(text);
    let (first_spi, spis) = GicConfig::get_spi_interrupt_range().map_err(text)?;
    let limits = layout::GicLimits {
        distributor_size: size(GicConfig::get_distributor_size())?,
        distributor_alignment: size(GicConfig::get_distributor_base_alignment())?,
        redistributors_size: size(GicConfig::get_redistributor_region_size())?,
        redistributor_size: size(GicConfig::get_redistributor_size())?,
        redistributors_alignment: size(GicConfig::get_redistributor_base_alignment())?,
        first_spi,
        spis,
    };
    finding(limits.check(8).is_ok(), format!("{limits:x?}"))
}

fn map_zero() -> Result<Finding> {
    let machine = Machine::new()?;
    finding(None, machine.map(0).map_or_else(|e| e, |()| "accepted".into()))
}

fn reset_registers() -> Result<Finding> {
    let _machine = Machine::new()?;
    let cpu = Cpu::as_created()?;
    let sctlr = cpu.system(SystemRegister::SCTLR_EL1)?;
    let found = format!(
        "PC {:#x}, CPSR {:#x}, SCTLR_EL1 {sctlr:#x}, CPACR_EL1 {:#x}, MPIDR_EL1 {:#x}, MIDR_EL1 {:#x}",
        cpu.get(Reg::PC)?,
        cpu.get(Reg::CPSR)?,
        cpu.system(SystemRegister::CPACR_EL1)?,
        cpu.system(SystemRegister::MPIDR_EL1)?,
        cpu.system(SystemRegister::MIDR_EL1)?,
    );
    finding(sctlr & 1 == 0, found)
}

fn id_registers() -> Result<Finding> {
    let _machine = Machine::new()?;
    let cpu = Cpu::new(0)?;
    let mut found = Vec::new();
    let mut all = true;
    for reg in [
        SystemRegister::ID_AA64PFR0_EL1,
        SystemRegister::ID_AA64PFR1_EL1,
        SystemRegister::ID_AA64DFR0_EL1,
        SystemRegister::ID_AA64MMFR0_EL1,
        SystemRegister::ID_AA64MMFR1_EL1,
        SystemRegister::ID_AA64MMFR2_EL1,
    ] {
        let value = cpu.system(reg)?;
        let wanted = sysreg::guest_id(SysReg(reg as u16), value, 36);
        let written = cpu.set_system(reg, wanted).and_then(|()| cpu.system(reg));
        all &= written.as_ref() == Ok(&wanted);
        found.push(format!("{reg:?} {value:#x}, wanted {wanted:#x}, is {written:x?}"));
    }
    finding(all, found.join("; "))
}

/// Two vCPUs on their threads: the second one is created after the first.
fn redistributors() -> Result<Finding> {
    let _machine = Machine::new()?;
    let first = Cpu::new(0)?;
    let before = first.redistributor()?;
    let second = std::thread::spawn(|| Cpu::new(1)?.redistributor()).join();
    let second = second.map_err(|_| "the second vCPU's thread panicked")??;
    let ordered = before.0 == gic::REDISTRIBUTORS && second.0 == layout::redistributor(1);
    let found = format!(
        "bases {:#x}, {:#x}; TYPER {:#x}, {:#x} (bit 4: last)",
        before.0, second.0, before.1, second.1
    );
    finding(ordered, found)
}

/// Writes code, runs it, writes other code there, and runs that.
fn instruction_cache() -> Result<Finding> {
    let machine = Machine::new()?;
    let cpu = Cpu::new(0)?;
    let mut answers = Vec::new();
    for mov in [0xd280_0020, 0xd280_0040] {
        machine.load(&[mov, 0xd400_0002]); // mov x0, #1 or #2; hvc #0
        cpu.restart()?;
        answers.push(cpu.answer()?);
    }
    finding(answers == [1, 2], format!("{answers:?}"))
}

fn spi_from_another_thread() -> Result<Finding> {
    let _machine = Machine::new()?;
    let _cpu = Cpu::new(0)?;
    let raised = std::thread::spawn(|| guest::set_spi(40)).join();
    raised.map_err(|_| "the thread panicked")??;
    let pending = guest::pending()?;
    finding(pending >> 8 & 1 == 1, format!("GICD_ISPENDR1 {pending:#x}"))
}

fn pending_in_state() -> Result<Finding> {
    let machine = Machine::new()?;
    let cpu = Cpu::new(0)?;
    guest::set_spi(40)?;
    let state = guest::gic_state()?;
    drop((cpu, machine));
    let _machine = Machine::new()?;
    let _cpu = Cpu::new(0)?;
    guest::set_gic_state(&state)?;
    let pending = guest::pending()?;
    let found = format!("{} bytes; GICD_ISPENDR1 {pending:#x}", state.len());
    finding(pending >> 8 & 1 == 1, found)
}

/// Runs a program for a while, and returns its exits.
fn exits(program: &[u32]) -> Result<BTreeSet<String>> {
    let machine = Machine::new()?;
    let cpu = Cpu::new(0)?;
    machine.load(program);
    let exit = guest::exit_after(cpu.id, Duration::from_millis(200));
    let mut seen = BTreeSet::new();
    loop {
        let exit = cpu.run()?;
        match (exit.reason, exit.class()) {
            (0, _) => break,
            (reason, None) => seen.insert(format!("reason {reason}")),
            (_, Some(class)) => seen.insert(format!("exception of class {class:#x}")),
        };
        if exit.class() == Some(1) {
            cpu.set(Reg::PC, cpu.get(Reg::PC)? + 4)?;
        }
    }
    exit.join().map_err(|_| "the thread panicked")?;
    Ok(seen)
}

fn wait_exits() -> Result<Finding> {
    let seen = exits(&[0xd503_207f, 0x17ff_ffff])?; // wfi; b . - 4
    finding(seen.is_empty(), format!("{seen:?}"))
}

fn timer_exits() -> Result<Finding> {
    let seen = exits(&[
        0xd280_7d01, // mov x1, #1000
        0xd51b_e301, // msr cntv_tval_el0, x1
        0xd280_0021, // mov x1, #1
        0xd51b_e321, // msr cntv_ctl_el0, x1
        0xd503_3fdf, // isb
        0x1400_0000, // b .
    ])?;
    finding(seen.is_empty(), format!("{seen:?}"))
}

/// Reads the guest's counter twice; the machine may sleep in between.
fn counter() -> Result<Finding> {
    unsafe extern "C" {
        safe fn mach_absolute_time() -> u64;
    }
    let machine = Machine::new()?;
    let cpu = Cpu::new(0)?;
    machine.load(&[0xd503_3fdf, 0xd53b_e040, 0xd400_0002]); // isb; mrs x0, cntvct_el0; hvc #0
    let mut differences = Vec::new();
    for pause in [0, wait_seconds()] {
        std::thread::sleep(Duration::from_secs(pause));
        cpu.restart()?;
        let before = mach_absolute_time();
        let value = cpu.answer()?;
        differences.push(value.wrapping_sub(before).cast_signed());
    }
    // A few milliseconds at 24 MHz.
    let close = |ticks: &i64| (0..100_000).contains(ticks);
    finding(
        differences.iter().all(close),
        format!("ahead by {differences:?} ticks; with HVF_PROBE_SLEEP=60, let the Mac sleep"),
    )
}

fn wait_seconds() -> u64 {
    std::env::var("HVF_PROBE_SLEEP").ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn sticky_exit() -> Result<Finding> {
    let machine = Machine::new()?;
    let cpu = Cpu::new(0)?;
    machine.load(&[0x1400_0000]); // b .
    guest::exit_after(cpu.id, Duration::ZERO).join().map_err(|_| "the thread panicked")?;
    let (id, (done, is_done)) = (cpu.id, mpsc::channel::<()>());
    // Without it, this would hang where the exit is lost.
    let rescue = std::thread::spawn(move || {
        let lost = is_done.recv_timeout(Duration::from_secs(2)).is_err();
        if lost {
            let _ = guest::exit_after(id, Duration::ZERO).join();
        }
        lost
    });
    let exit = cpu.run()?;
    let _ = done.send(());
    let lost = rescue.join().map_err(|_| "the thread panicked")?;
    finding(!lost && exit.reason == 0, format!("reason {}, lost: {lost}", exit.reason))
}

/// A guest sets a vector, is saved and restored in another VM, and writes the vector's halves to a device.
fn vectors() -> Result<Finding> {
    const DEVICE: u64 = 0x0c00_0000;
    let config = VmConfig { vcpus: 1, nested: false, address_end: BASE + (1 << 30) };
    let program: [u32; 13] = [
        0xd2a0_0601, // mov x1, #0x300000
        0xd518_1041, // msr cpacr_el1, x1
        0xd503_3fdf, // isb
        0xd282_4681, // mov x1, #0x1234
        0x9e67_0020, // fmov d0, x1
        0xd28a_cf01, // mov x1, #0x5678
        0x4e18_1c20, // mov v0.d[1], x1
        0xf900_0001, // str x1, [x0]
        0x4e08_3c01, // mov x1, v0.d[0]
        0xf900_0001, // str x1, [x0]
        0x4e18_3c01, // mov x1, v0.d[1]
        0xf900_0001, // str x1, [x0]
        0x1400_0000, // b .
    ];
    let layout = std::alloc::Layout::from_size_align(1 << 14, 1 << 14).map_err(text)?;
    // SAFETY: the size is not zero. The page is leaked, so that it outlives both VMs.
    let page = unsafe { std::alloc::alloc_zeroed(layout) };
    if page.is_null() {
        return Err("no memory".into());
    }
    for (at, &word) in program.iter().enumerate() {
        // SAFETY: within the page.
        unsafe { page.cast::<u32>().add(at).write_volatile(word) };
    }
    let new = || -> Result<HvfVm> {
        let vm = HvfVm::new(&config).map_err(text)?;
        // SAFETY: the page is never freed.
        unsafe { vm.map(BASE, page, 1 << 14, Perms::ReadWriteExecute) }.map_err(text)?;
        Ok(vm)
    };
    let boot = BootState::Start { entry: BASE, argument: DEVICE, page_table: 0 };
    let written = |vcpu: &mut <HvfVm as Vm>::Vcpu| match vcpu.run().map_err(text)? {
        Exit::MmioWrite { data, .. } => {
            Ok(data.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
        }
        other => Err(format!("expected a write, got {other:?}")),
    };
    let vm = new()?;
    let mut vcpu = vm.bind_vcpu(0, &boot).map_err(text)?;
    written(&mut vcpu)?;
    let state = (vm.save().map_err(text)?, vcpu.save().map_err(text)?);
    drop((vcpu, vm));
    let vm = new()?;
    let mut vcpu = vm.bind_vcpu(0, &boot).map_err(text)?;
    vm.restore(&state.0).map_err(text)?;
    vcpu.restore(&state.1).map_err(text)?;
    let halves = [written(&mut vcpu)?, written(&mut vcpu)?];
    finding(halves == [0x1234, 0x5678], format!("{halves:x?}"))
}

/// The last check: the sandbox stays.
fn sandbox() -> Result<Finding> {
    unsafe extern "C" {
        fn sandbox_init(profile: *const c_char, flags: u64, error: *mut *mut c_char) -> i32;
    }
    let machine = Machine::new()?;
    let mut error = std::ptr::null_mut();
    let profile = c"(version 1)(deny default)";
    // SAFETY: the strings are valid for the call; the error is a C string if the call fails.
    let code = unsafe { sandbox_init(profile.as_ptr(), 0, &mut error) };
    if code != 0 {
        if error.is_null() {
            return Err("sandbox_init failed".into());
        }
        // SAFETY: as above.
        return Err(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned());
    }
    let cpu = Cpu::new(0)?;
    machine.load(&[0xd280_0020, 0xd400_0002]);
    finding(cpu.answer()? == 1, "a vCPU was created and ran")
}
