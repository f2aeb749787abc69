//! The backend on a scripted framework: each exit that a guest can cause, and what follows from it.

#![allow(unsafe_code)]

mod framework;

use std::sync::MutexGuard;

use applevisor_sys::{hv_reg_t as Reg, hv_sys_reg_t as SysReg};
use boxlite_hv::{Exit, Vcpu};
use proptest::prelude::*;

use self::framework::{Step, script, with};
use super::*;
use crate::decode::{Exception, InstructionAbort, SystemAccess, Transfer, Width, class};
use crate::sys::reason;

const ENTRY: u64 = 0x8000_0000;
const ARGUMENT: u64 = 0x8100_0000;
const DEVICE: u64 = 0x0c00_0010;

const START: BootState = BootState::Start { entry: ENTRY, argument: ARGUMENT, page_table: 0 };

/// A VM of the framework, for one test at a time.
struct Machine {
    vm: Arc<HvfVm>,
    _test: MutexGuard<'static, ()>,
}

fn config(vcpus: u32) -> VmConfig {
    VmConfig { vcpus, nested: false, address_end: ENTRY + (1 << 30) }
}

fn machine() -> Machine {
    let _test = framework::test();
    let vm = Arc::new(HvfVm::new(&config(2)).unwrap());
    Machine { vm, _test }
}

impl Machine {
    fn vcpu(&self) -> HvfVcpu {
        self.vm.bind_vcpu(0, &START).unwrap()
    }
}

fn get(vcpu: usize, reg: Reg) -> u64 {
    with(|state| state.vcpus[vcpu].general[&(reg as u32)])
}

fn set(vcpu: usize, reg: Reg, value: u64) {
    with(|state| state.vcpus[vcpu].general.insert(reg as u32, value));
}

fn get_system(vcpu: usize, reg: SysReg) -> u64 {
    with(|state| state.vcpus[vcpu].system.get(&(reg as u32)).copied().unwrap_or(0))
}

fn set_system(vcpu: usize, reg: SysReg, value: u64) {
    with(|state| state.vcpus[vcpu].system.insert(reg as u32, value));
}

/// An exit for this exception, from the device's address.
fn exit(exception: Exception) -> Step {
    Step::exception(exception.encode(), 0xffff_0010, DEVICE)
}

fn abort(transfer: Option<Transfer>, write: bool) -> decode::DataAbort {
    decode::DataAbort {
        transfer,
        write,
        cache_maintenance: false,
        table_walk: false,
        far_invalid: false,
        status: 7,
    }
}

fn transfer(width: Width, sign: bool, wide: bool, register: u8) -> Transfer {
    Transfer { width, sign, register, wide }
}

/// Starts a vCPU, so that the registers are those of its boot: tests change them afterwards.
fn boot(vcpu: &mut HvfVcpu) {
    script(
        0,
        [exit(Exception::DataAbort(abort(Some(transfer(Width::Word, false, false, 31)), true)))],
    );
    assert_eq!(vcpu.run().unwrap(), Exit::MmioWrite { gpa: DEVICE, data: &[0; 4] });
    assert_eq!(get(0, Reg::PC), ENTRY + 4);
}

/// Runs through the exits in the script.
fn run_script(vcpu: &mut HvfVcpu) {
    // The last entry fails: there is nothing left to do.
    script(0, [Step::Fail]);
    assert!(vcpu.run().is_err());
}

#[test]
fn one_vm_per_process() {
    let machine = machine();
    let second = HvfVm::new(&config(1)).unwrap_err();
    assert!(second.to_string().contains("one per process"), "{second}");
    let vcpu = machine.vcpu();
    let Machine { vm, _test } = machine;
    drop(vm);
    assert!(HvfVm::new(&config(1)).is_err(), "a vCPU keeps its VM");
    drop(vcpu);
    assert!(!with(|state| state.vm));
    HvfVm::new(&config(4)).unwrap();
    HvfVm::new(&config(5)).unwrap_err();
}

#[test]
fn a_vm_is_where_the_device_tree_says() {
    let machine = machine();
    with(|state| {
        assert_eq!(state.gic, [0x0800_0000, 0x0a00_0000]);
        assert_eq!(state.ipa_bits, 0, "the default");
    });
    let Machine { vm, _test } = machine;
    drop(vm);
    let large = VmConfig { address_end: 1 << 38, ..config(1) };
    let vm = HvfVm::new(&large).unwrap();
    assert_eq!(with(|state| state.ipa_bits), 38);
    drop(vm);
    HvfVm::new(&VmConfig { address_end: 1 << 41, ..large }).unwrap_err();
}

#[test]
fn a_vcpu_starts_as_linux_wants_it() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    run_script(&mut vcpu);
    assert_eq!((get(0, Reg::PC), get(0, Reg::X0)), (ENTRY, ARGUMENT));
    assert_eq!([Reg::X1, Reg::X2, Reg::X3, Reg::X30].map(|reg| get(0, reg)), [0; 4]);
    assert_eq!(get(0, Reg::CPSR), 0x3c5);
    assert_eq!(get_system(0, SysReg::SCTLR_EL1) & 0x1005, 0, "MMU and caches are off");
    // A GIC, no EL2, no SVE; no performance monitors; 36 bits of addresses.
    assert_eq!(get_system(0, SysReg::ID_AA64PFR0_EL1), 0x1101_0000_1111_1011);
    assert_eq!(get_system(0, SysReg::ID_AA64DFR0_EL1) & 0xf00, 0);
    assert_eq!(get_system(0, SysReg::ID_AA64MMFR0_EL1) & 0xf, 1);
    let second = machine.vm.bind_vcpu(1, &BootState::Parked).unwrap();
    assert_eq!(get_system(1, SysReg::MPIDR_EL1), 1);
    machine.vm.bind_vcpu(2, &BootState::Parked).unwrap_err();
    drop(second);
}

#[test]
fn loads_of_every_width_and_sign() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    boot(&mut vcpu);
    let value = 0x8182_8384_8586_8788u64;
    for (n, (width, sign, wide)) in Width::ALL
        .into_iter()
        .flat_map(|w| [(w, false, false), (w, true, false), (w, false, true), (w, true, true)])
        .enumerate()
    {
        let load = transfer(width, sign, wide, 7);
        script(0, [exit(Exception::DataAbort(abort(Some(load), false)))]);
        match vcpu.run().unwrap() {
            Exit::MmioRead { gpa: DEVICE, data } => {
                data.copy_from_slice(&value.to_le_bytes()[..width.bytes()]);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(get(0, Reg::PC), ENTRY + 4 + 4 * n as u64, "not complete yet");
        vcpu.save().unwrap();
        assert_eq!(get(0, Reg::X7), decode::complete_read(value, width, sign, wide));
        assert_eq!(get(0, Reg::PC), ENTRY + 8 + 4 * n as u64);
    }
}

#[test]
fn register_31_is_zero() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    boot(&mut vcpu);
    let zero = Some(transfer(Width::Double, false, true, 31));
    let before = with(|state| state.vcpus[0].general.clone());
    script(0, [exit(Exception::DataAbort(abort(zero, false)))]);
    match vcpu.run().unwrap() {
        Exit::MmioRead { data, .. } => data.fill(0xff),
        other => panic!("{other:?}"),
    }
    script(0, [exit(Exception::DataAbort(abort(zero, true)))]);
    assert_eq!(vcpu.run().unwrap(), Exit::MmioWrite { gpa: DEVICE, data: &[0; 8] });
    let mut after = with(|state| state.vcpus[0].general.clone());
    assert_eq!(after.insert(Reg::PC as u32, ENTRY + 4), Some(ENTRY + 12));
    assert_eq!(before, after);
}

#[test]
fn stores_of_every_width() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    boot(&mut vcpu);
    let value = 0x8182_8384_8586_8788u64;
    set(0, Reg::X30, value);
    for width in Width::ALL {
        let store = transfer(width, false, true, 30);
        script(0, [exit(Exception::DataAbort(abort(Some(store), true)))]);
        let bytes = &value.to_le_bytes()[..width.bytes()];
        assert_eq!(vcpu.run().unwrap(), Exit::MmioWrite { gpa: DEVICE, data: bytes });
    }
}

#[test]
fn cache_maintenance_is_skipped() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    boot(&mut vcpu);
    let clean = decode::DataAbort { cache_maintenance: true, ..abort(None, true) };
    script(0, [exit(Exception::DataAbort(clean))]);
    run_script(&mut vcpu);
    assert_eq!(get(0, Reg::PC), ENTRY + 8);
}

#[test]
fn an_executed_instruction_ends_a_single_step() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    boot(&mut vcpu);
    set(0, Reg::CPSR, 0x3c5 | 1 << 21 | 1 << 10);
    let store = transfer(Width::Word, false, false, 0);
    script(0, [exit(Exception::DataAbort(abort(Some(store), true)))]);
    vcpu.run().unwrap();
    assert_eq!(get(0, Reg::CPSR), 0x3c5);
}

#[test]
fn what_no_device_answers_is_an_external_abort() {
    let word = Some(transfer(Width::Word, false, false, 1));
    let walk = decode::DataAbort { table_walk: true, ..abort(word, false) };
    let fetch = InstructionAbort { table_walk: false, far_invalid: false, status: 7 };
    for (exception, esr) in [
        (Exception::DataAbort(abort(None, true)), 0x9600_0050),
        (Exception::DataAbort(walk), 0x9600_0010),
        (Exception::InstructionAbort(fetch), 0x8600_0010),
    ] {
        let machine = machine();
        let mut vcpu = machine.vcpu();
        boot(&mut vcpu);
        set_system(0, SysReg::VBAR_EL1, 0x9000_0000);
        script(0, [exit(exception)]);
        run_script(&mut vcpu);
        assert_eq!(get(0, Reg::PC), 0x9000_0200);
        assert_eq!(get_system(0, SysReg::ELR_EL1), ENTRY + 4);
        assert_eq!(get_system(0, SysReg::SPSR_EL1), 0x3c5);
        assert_eq!(get_system(0, SysReg::ESR_EL1), esr);
        assert_eq!(get_system(0, SysReg::FAR_EL1), 0xffff_0010);
    }
}

#[test]
fn system_registers_are_served_or_undefined() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    boot(&mut vcpu);
    set(0, Reg::X5, 77);
    let access = |reg, rt, read| exit(Exception::System(SystemAccess { reg, rt, read }));
    script(0, [access(sysreg::SysReg::new(2, 0, 1, 0, 4), 5, false)]);
    script(0, [access(sysreg::SysReg::new(3, 0, 0, 6, 7), 5, true)]);
    script(0, [access(sysreg::SysReg::new(2, 0, 1, 1, 4), 6, true)]);
    script(0, [access(sysreg::SysReg::new(3, 3, 14, 0, 1), 7, true)]);
    run_script(&mut vcpu);
    assert_eq!(get(0, Reg::PC), ENTRY + 4 + 16);
    assert_eq!((get(0, Reg::X5), get(0, Reg::X6)), (0, 8));
    let counter = sys::counter() - with(|state| state.vcpus[0].offset);
    assert!((1..=counter).contains(&get(0, Reg::X7)), "the guest's counter");

    script(0, [access(sysreg::SysReg::new(3, 4, 1, 1, 0), 5, true)]);
    run_script(&mut vcpu);
    assert_eq!(get_system(0, SysReg::ESR_EL1), 0x0200_0000);
    assert_eq!(get(0, Reg::PC), 0x200);
}

#[test]
fn debug_exceptions_are_the_guests_own() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    boot(&mut vcpu);
    script(0, [exit(Exception::Debug { class: class::BRK, iss: 0x800 })]);
    run_script(&mut vcpu);
    assert_eq!(get_system(0, SysReg::ESR_EL1), 0xf200_0800);
    assert_eq!(get_system(0, SysReg::ELR_EL1), ENTRY + 4, "at the instruction");
}

#[test]
fn firmware_answers_by_hvc_and_smc() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    boot(&mut vcpu);
    set(0, Reg::X0, 0x8400_0000);
    script(0, [exit(Exception::Hvc(0))]);
    run_script(&mut vcpu);
    assert_eq!((get(0, Reg::X0), get(0, Reg::PC)), (0x1_0001, ENTRY + 4));
    set(0, Reg::X0, 0xc600_0001);
    script(0, [exit(Exception::Smc(0))]);
    run_script(&mut vcpu);
    assert_eq!((get(0, Reg::X0), get(0, Reg::PC)), (u64::MAX, ENTRY + 8));
    set(0, Reg::X0, 0x8400_0000);
    script(0, [exit(Exception::Hvc(1))]);
    run_script(&mut vcpu);
    assert_eq!(get(0, Reg::X0), u64::MAX);
}

#[test]
fn waits_and_timers_go_on() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    boot(&mut vcpu);
    script(0, [exit(Exception::Wait(decode::Wait::Interrupt))]);
    script(0, [exit(Exception::Wait(decode::Wait::Event)), Step::reason(reason::VTIMER)]);
    set_system(0, SysReg::CNTV_CTL_EL0, 5);
    run_script(&mut vcpu);
    assert_eq!(get(0, Reg::PC), ENTRY + 12);
    with(|state| {
        assert!(state.vcpus[0].masked, "the timer still asserts its interrupt");
        assert_eq!(state.vcpus[0].pending, 1 << 27);
    });
    set_system(0, SysReg::CNTV_CTL_EL0, 1);
    run_script(&mut vcpu);
    assert!(!with(|state| state.vcpus[0].masked), "the guest has set it anew");
}

#[test]
fn a_kick_is_neither_lost_nor_counted_twice() {
    let machine = machine();
    machine.vm.kick(0).unwrap();
    let mut vcpu = machine.vcpu();
    machine.vm.kick(0).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Kicked);
    boot(&mut vcpu);
    let vm = machine.vm.clone();
    let entries = with(|state| state.vcpus[0].entries);
    let kicker = std::thread::spawn(move || {
        framework::wait_for_entries(0, entries + 1);
        vm.kick(0).unwrap();
    });
    assert_eq!(vcpu.run().unwrap(), Exit::Kicked);
    kicker.join().unwrap();
}

/// CPU_ON, a kick while parked, CPU_OFF, and the end of the system, with two vCPUs on their threads.
#[test]
fn a_second_vcpu_starts_and_stops() {
    let machine = machine();
    let mut first = machine.vcpu();
    boot(&mut first);
    let vm = machine.vm.clone();
    let write =
        exit(Exception::DataAbort(abort(Some(transfer(Width::Word, false, false, 0)), true)));
    let (ran, has_run) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            let mut second = vm.bind_vcpu(1, &BootState::Parked).unwrap();
            vm.kick(1).unwrap();
            assert_eq!(second.run().unwrap(), Exit::Kicked);
            script(1, [write]);
            assert_eq!(second.run().unwrap(), Exit::MmioWrite { gpa: DEVICE, data: &[7, 0, 0, 0] });
            assert_eq!((get(1, Reg::PC), get(1, Reg::CPSR)), (ENTRY + 0x1004, 0x3c5));
            // Off, and kicked by the end of the system.
            set(1, Reg::X0, 0x8400_0002);
            script(1, [exit(Exception::Hvc(0))]);
            ran.send(()).unwrap();
            assert_eq!(second.run().unwrap(), Exit::Kicked);
            assert_eq!(vm.shared.power.power(1), Power::Off);
        });
        for (reg, value) in [
            (Reg::X0, 0xc400_0003),
            (Reg::X1, 1 | 1 << 31),
            (Reg::X2, ENTRY + 0x1000),
            (Reg::X3, 7),
        ] {
            set(0, reg, value);
        }
        script(0, [exit(Exception::Hvc(0))]);
        run_script(&mut first);
        assert_eq!(get(0, Reg::X0), 0);
        has_run.recv().unwrap();
        while vm.shared.power.power(1) != Power::Off {
            std::thread::yield_now();
        }
        set(0, Reg::X0, 0x8400_0008);
        script(0, [exit(Exception::Hvc(0))]);
        assert_eq!(first.run().unwrap(), Exit::Shutdown);
        second.join().unwrap();
    });
    machine.vm.kick(0).unwrap();
    assert_eq!(first.run().unwrap(), Exit::Kicked, "off as well");
}

#[test]
fn a_reset_is_an_exit() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    boot(&mut vcpu);
    set(0, Reg::X0, 0x8400_0009);
    script(0, [exit(Exception::Hvc(0))]);
    assert_eq!(vcpu.run().unwrap(), Exit::Reset);
}

#[test]
fn unknown_exits_are_errors() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    script(0, [Step::reason(3), Step::reason(0xdead), Step::Fail]);
    for reason in ["unknown reason 3", "unknown reason 57005", "hv_vcpu_run"] {
        let error = vcpu.run().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn memory_is_mapped_with_its_permissions() {
    let machine = machine();
    let host = 0x10_0000 as *mut u8;
    let map = |gpa, len, perms| {
        // SAFETY: the scripted framework touches no memory.
        unsafe { machine.vm.map(gpa, host, len, perms) }
    };
    map(ENTRY, 0x8000, Perms::ReadWriteExecute).unwrap();
    map(ENTRY + 0x8000, 0x4000, Perms::ReadExecute).unwrap();
    map(ENTRY + 0x4000, 0x4000, Perms::ReadExecute).unwrap_err();
    map(ENTRY + 0x1000_1000, 0x4000, Perms::ReadExecute).unwrap_err();
    map(1 << 36, 0x4000, Perms::ReadExecute).unwrap_err();
    let mapped = [(ENTRY, 0x8000, 7), (ENTRY + 0x8000, 0x4000, 5)];
    assert_eq!(with(|state| state.mappings.clone()), mapped);
    machine.vm.unmap(ENTRY, 0x4000).unwrap_err();
    machine.vm.unmap(ENTRY, 0x8000).unwrap();
    machine.vm.unmap(ENTRY, 0x8000).unwrap_err();
    assert_eq!(with(|state| state.mappings.clone()), mapped[1..]);
}

#[test]
fn lines_are_shared_peripheral_interrupts() {
    let machine = machine();
    let line = machine.vm.irq(3).unwrap();
    line.raise().unwrap();
    machine.vm.irq(96).unwrap_err();
    assert_eq!(with(|state| state.spis.clone()), [35]);
    assert!(machine.vm.doorbell(DEVICE).is_none());
    let Machine { vm, _test } = machine;
    drop(vm);
    line.raise().unwrap();
    assert_eq!(with(|state| state.spis.clone()), [35], "the VM is gone");
}

#[test]
fn a_saved_state_goes_on_in_another_vm() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    boot(&mut vcpu);
    with(|state| {
        state.gic_state = vec![1, 2, 3];
        let vcpu = &mut state.vcpus[0];
        vcpu.vectors.insert(3, 1 << 100 | 5);
        vcpu.icc.insert(0xc230, 0xf0);
        vcpu.masked = true;
    });
    for (reg, value) in [
        (SysReg::VBAR_EL1, 0x9000_0000),
        (SysReg::APGAKEYHI_EL1, 12),
        (SysReg::DBGWVR3_EL1, 13),
        (SysReg::CNTV_CTL_EL0, 5),
        (SysReg::CNTV_CVAL_EL0, 14),
        (SysReg::CNTP_CTL_EL0, 7),
        (SysReg::CNTP_CVAL_EL0, 15),
    ] {
        set_system(0, reg, value);
    }
    let saved = (machine.vm.save().unwrap(), vcpu.save().unwrap());
    let json = serde_json::to_string(&saved).unwrap();
    let counter = sys::counter() - with(|state| state.vcpus[0].offset);
    let before = with(|state| state.vcpus[0].general.clone());
    drop(vcpu);
    let Machine { vm, _test } = machine;
    drop(vm);

    let (vm_state, vcpu_state): (VmState, VcpuState) = serde_json::from_str(&json).unwrap();
    let vm = HvfVm::new(&config(2)).unwrap();
    with(|state| state.gic_state.clear());
    let mut vcpu = vm.bind_vcpu(0, &BootState::Parked).unwrap();
    vm.restore(&vm_state).unwrap();
    vcpu.restore(&vcpu_state).unwrap();
    with(|state| {
        assert_eq!(state.gic_state, [1, 2, 3]);
        let vcpu = &state.vcpus[0];
        assert_eq!(vcpu.general, before);
        assert_eq!((vcpu.vectors[&3], vcpu.icc[&0xc230]), (1 << 100 | 5, 0xf0));
        assert!(vcpu.masked);
    });
    assert_eq!(get_system(0, SysReg::VBAR_EL1), 0x9000_0000);
    assert_eq!(get_system(0, SysReg::APGAKEYHI_EL1), 12);
    assert_eq!(get_system(0, SysReg::DBGWVR3_EL1), 13);
    assert_eq!(get_system(0, SysReg::CNTV_CVAL_EL0), 14);
    assert_eq!(get_system(0, SysReg::CNTV_CTL_EL0), 1, "the status follows from the rest");
    assert_eq!(get_system(0, SysReg::CNTP_CVAL_EL0), 15);
    assert_eq!(get_system(0, SysReg::CNTP_CTL_EL0), 3);
    vcpu.resumed();
    script(0, [Step::Fail]);
    assert!(vcpu.run().is_err(), "it is on");
    // No later than when it was saved, on a clock that went on meanwhile.
    let offset = with(|state| state.vcpus[0].offset);
    assert!(offset > 0 && counter_of(&vm.save().unwrap()) <= sys::counter() - offset);
    assert!(counter_of(&vm_state) <= counter);
}

fn counter_of(state: &VmState) -> u64 {
    serde_json::to_value(state).unwrap()["counter"].as_u64().unwrap()
}

#[test]
fn a_state_with_an_unknown_register_is_refused() {
    let machine = machine();
    let mut vcpu = machine.vcpu();
    boot(&mut vcpu);
    let mut state = serde_json::to_value(vcpu.save().unwrap()).unwrap();
    state["system"][0][0] = 0xc020.into();
    let state: VcpuState = serde_json::from_value(state).unwrap();
    let error = vcpu.restore(&state).unwrap_err().to_string();
    assert!(error.contains("S3_0_C0_C4_0"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    /// Whatever the syndrome and the registers are, the vCPU goes on: to an exit or to the script's end.
    #[test]
    fn no_exit_panics(
        esr: u64,
        class in prop_oneof![Just(None), (0..64u64).prop_map(Some)],
        va: u64,
        pa: u64,
        registers: [u64; 4],
        system: [u64; 5],
    ) {
        let machine = machine();
        let mut vcpu = machine.vcpu();
        boot(&mut vcpu);
        for (reg, value) in [Reg::X0, Reg::X1, Reg::X2, Reg::X3].into_iter().zip(registers) {
            set(0, reg, value);
        }
        let names = [SysReg::VBAR_EL1, SysReg::SCTLR_EL1, SysReg::CNTV_CTL_EL0, SysReg::CNTV_CVAL_EL0];
        for (reg, value) in names.into_iter().zip(system) {
            set_system(0, reg, value);
        }
        set(0, Reg::CPSR, system[4]);
        set(0, Reg::PC, u64::MAX - 1);
        let esr = class.map_or(esr, |class| class << 26 | esr & 0x3ff_ffff);
        script(0, [Step::exception(esr, va, pa), Step::Fail, Step::Fail]);
        let first = vcpu.run().map(drop).is_ok();
        prop_assert!(vcpu.run().is_err(), "an exit ({first}) is followed by the end of the script");
    }
}
