//! Tests that every backend must pass, written once.
//!
//! A backend says how to create a VM ([`Backend`]) and calls [`conformance_tests!`](crate::conformance_tests)
//! in its test module. The guests are a few instructions each: they run even where the
//! hypervisor emulates every instruction.
//!
//! There is one VM at a time in the process, as Hypervisor.framework allows no more. Guest memory of aarch64 is not at
//! GPA 0, and mappings are aligned for hosts with 64 KiB pages. Guests run with the MMU off on aarch64, so nothing that
//! they write is read through the host's caches: they report by MMIO.

#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod pages;
mod saved;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use self::aarch64 as guest;
#[cfg(target_arch = "x86_64")]
use self::x86_64 as guest;

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::pages::Pages;
pub use self::saved::*;
use crate::{BootState, Error, Exit, Perms, Vcpu, Vm, VmConfig};

/// The number of vCPUs of a VM.
const VCPUS: u32 = 2;

/// The suite's access to a hypervisor.
pub trait Backend {
    /// The backend's VM.
    type Vm: Vm;

    /// Creates a VM. The error says why this host cannot: the tests are then reported as skipped.
    fn vm(config: &VmConfig) -> Result<Self::Vm, String>;

    /// Why this hypervisor may extend a read with zeros instead of the sign, if it is known to.
    fn loses_signs() -> Option<&'static str> {
        None
    }
}

/// Declares a `#[test]` for every check of the suite, for the given [`Backend`].
#[macro_export]
macro_rules! conformance_tests {
    ($backend:ty) => {
        $crate::conformance_tests!($backend:
            mmio_exits_carry_every_width
            mmio_reads_are_extended
            port_io_exits
            memory_is_mapped_and_unmapped
            read_only_memory_exits_on_write
            bad_ranges_are_refused
            doorbell_rings_without_an_exit
            vcpus_and_lines_that_do_not_exist_are_refused
            interrupt_lines_can_be_raised
            interrupt_line_reaches_the_controller
            kick_interrupts_a_running_vcpu
            kick_before_run_is_not_lost
            parked_vcpu_does_not_run
            parked_vcpu_is_started_by_the_guest
            reset_exits
            shutdown_exits
            endless_faults_can_be_kicked
            access_that_cannot_be_emulated_aborts
            saved_state_continues_in_another_machine
            saved_vcpus_continue_in_another_machine
            saved_controller_continues_in_another_machine
            saved_timers_continue_in_another_machine
            saved_clock_does_not_step_back
        );
    };
    ($backend:ty: $($check:ident)*) => {
        $(#[test]
        fn $check() {
            $crate::conformance::$check::<$backend>();
        })*
    };
}

/// Size of a test's guest memory, from [`guest::BASE`].
const MEMORY: usize = 1 << 20;
/// Offset of the guest's data, within [`MEMORY`].
const DATA: usize = 0x4_0000;
/// A GPA without memory, 64 KiB aligned, within reach of the guest's page tables.
const MMIO: u64 = guest::BASE + 0x20_0000;
/// Where a second vCPU writes: the first GPA after the memory, which x86_64 reaches in real mode.
const SECOND_MMIO: u64 = guest::BASE + MEMORY as u64;
/// An interrupt line.
const LINE: u32 = 16;
/// What the guest sees of [`LINE`] in 32 pending bits of its interrupt controller.
const LINE_PENDING: u32 = 1 << 16;

/// A read that the guest extends to 8 bytes, and the 8 bytes.
struct Extended {
    read: &'static [u8],
    written: u64,
}

/// A VM with memory and a program in it. The only one in the process.
struct Machine<V: Vm> {
    vm: Arc<V>,
    memory: Pages,
    boot: BootState,
    _alone: MutexGuard<'static, ()>,
}

/// Reports that a test did not run.
fn skipped(reason: &str) {
    eprintln!("SKIPPED: {reason}");
}

impl<V: Vm> Machine<V> {
    fn new<B: Backend<Vm = V>>(program: &guest::Program, argument: u64) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let config = VmConfig { vcpus: VCPUS, nested: false, address_end: MMIO + (1 << 20) };
        let vm = match B::vm(&config) {
            Ok(vm) => Arc::new(vm),
            Err(reason) => {
                skipped(&reason);
                return None;
            }
        };
        let memory = Pages::new(MEMORY);
        let boot = guest::load(&memory, program, argument);
        // SAFETY: the pages live as long as the machine: fields drop in their order.
        unsafe { vm.map(guest::BASE, memory.at(0), MEMORY, Perms::ReadWriteExecute) }.expect("map");
        Some(Self { vm, memory, boot, _alone: alone })
    }

    fn vcpu(&self) -> V::Vcpu {
        self.vm.bind_vcpu(0, &self.boot).expect("bind vCPU 0")
    }

    /// Calls `first` with vCPU 0 and `second`, on another thread, with vCPU 1, which begins parked. `first` runs when both
    /// exist; when it returns, the flag of `second` is set and vCPU 1 is kicked.
    fn with_second<T, U: Send>(
        &self,
        first: impl FnOnce(&mut V::Vcpu) -> T,
        second: impl FnOnce(&mut V::Vcpu, &AtomicBool) -> U + Send,
    ) -> (T, U) {
        let mut vcpu = self.vcpu();
        let (bound, done) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut vcpu = self.vm.bind_vcpu(1, &BootState::Parked).expect("bind vCPU 1");
                bound.store(true, Ordering::SeqCst);
                second(&mut vcpu, &done)
            });
            // Also if `first` panics: the scope waits for the thread.
            let stop = OnDrop(|| {
                done.store(true, Ordering::SeqCst);
                self.vm.kick(1).expect("kick");
            });
            wait_until(|| bound.load(Ordering::SeqCst) || thread.is_finished());
            let result = first(&mut vcpu);
            drop(stop);
            (result, thread.join().expect("the thread of vCPU 1"))
        })
    }
}

/// Runs a vCPU that stays parked.
fn stay_parked<C: Vcpu>(vcpu: &mut C, done: &AtomicBool) {
    while !done.load(Ordering::SeqCst) {
        assert_eq!(vcpu.run().expect("run"), Exit::Kicked);
    }
}

/// Keeps a vCPU outside the guest.
fn stay_out<C: Vcpu>(_: &mut C, done: &AtomicBool) {
    wait_until(|| done.load(Ordering::SeqCst));
}

/// Calls a function when it is dropped.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Waits for another thread.
fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::yield_now();
    }
}

/// Runs to the next exit that is not a kick and passes it to `f`.
fn next<C: Vcpu, T>(vcpu: &mut C, f: impl FnOnce(Exit<'_>) -> T) -> T {
    // Signals of the test runner may look like kicks.
    for _ in 0..100 {
        match vcpu.run().expect("run") {
            Exit::Kicked => {}
            exit => return f(exit),
        }
    }
    panic!("the vCPU only gets kicked");
}

fn expect_write<C: Vcpu>(vcpu: &mut C, at: u64, bytes: &[u8]) {
    next(vcpu, |exit| assert_eq!(exit, Exit::MmioWrite { gpa: at, data: bytes }));
}

fn answer_read<C: Vcpu>(vcpu: &mut C, at: u64, bytes: &[u8]) {
    next(vcpu, |exit| match exit {
        Exit::MmioRead { gpa, data } => {
            assert_eq!((gpa, data.len()), (at, bytes.len()));
            data.copy_from_slice(bytes);
        }
        other => panic!("expected a read of {at:#x}, got {other:?}"),
    });
}

/// Reads and writes of 1, 2, 4 and 8 bytes arrive with their address, width and data.
pub fn mmio_exits_carry_every_width<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::COPY_EVERY_WIDTH, MMIO) else { return };
    let mut vcpu = machine.vcpu();
    for (width, value) in [(1, 0x81u64), (2, 0x8182), (4, 0x8182_8384), (8, 0x8182_8384_8586_8788)]
    {
        let bytes = &value.to_le_bytes()[..width];
        answer_read(&mut vcpu, MMIO, bytes);
        expect_write(&mut vcpu, MMIO + 8, bytes);
    }
}

/// Reads are extended to the register as the guest's instruction says, by sign or with zeros; aarch64 also reads to and
/// writes from the zero register. Where the kernel completes reads, it is the kernel that is checked.
pub fn mmio_reads_are_extended<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::EXTEND, MMIO) else { return };
    let mut vcpu = machine.vcpu();
    let mut lost = None;
    for Extended { read, written } in guest::EXTENDED {
        answer_read(&mut vcpu, MMIO, read);
        let mut zero_extended = [0; 8];
        zero_extended[..read.len()].copy_from_slice(read);
        next(&mut vcpu, |exit| match (exit, B::loses_signs()) {
            (Exit::MmioWrite { gpa, data }, Some(reason))
                if gpa == MMIO + 8 && data == zero_extended && data != written.to_le_bytes() =>
            {
                lost = Some(reason);
            }
            (exit, _) => {
                let data = &written.to_le_bytes();
                assert_eq!(exit, Exit::MmioWrite { gpa: MMIO + 8, data });
            }
        });
    }
    if let Some(reason) = lost {
        skipped(reason);
    }
}

/// `in` and `out` arrive with port, width and data. x86 only.
pub fn port_io_exits<B: Backend>() {
    let Some(program) = guest::COPY_PORT else { return };
    let Some(machine) = Machine::new::<B>(program, 0) else { return };
    let mut vcpu = machine.vcpu();
    for bytes in [&[0x5a][..], &[1, 2, 3, 4]] {
        next(&mut vcpu, |exit| match exit {
            Exit::PioRead { port: 0x510, data } => data.copy_from_slice(bytes),
            other => panic!("expected a port read, got {other:?}"),
        });
        next(&mut vcpu, |exit| assert_eq!(exit, Exit::PioWrite { port: 0x514, data: bytes }));
    }
}

/// Mapped memory is read without an exit; the same address exits once it is unmapped, and reads
/// memory again once it is mapped again.
pub fn memory_is_mapped_and_unmapped<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::COPY_FOREVER, MMIO) else { return };
    let page = Pages::new(Pages::ALIGN);
    page.write(0, &7u32.to_le_bytes());
    // SAFETY: `page` outlives the mapping, which is removed below or with the machine, and the
    // machine is dropped first.
    let map = || unsafe {
        machine.vm.map(MMIO, page.at(0), Pages::ALIGN, Perms::ReadWriteExecute).expect("map");
    };
    let (source, target) = (MMIO, MMIO + Pages::ALIGN as u64);
    let mut vcpu = machine.vcpu();
    for _ in 0..2 {
        map();
        expect_write(&mut vcpu, target, &7u32.to_le_bytes());
        machine.vm.unmap(MMIO, Pages::ALIGN).expect("unmap");
        answer_read(&mut vcpu, source, &9u32.to_le_bytes());
        expect_write(&mut vcpu, target, &9u32.to_le_bytes());
    }
    drop(vcpu);
    drop(machine);
}

/// Read-only memory is read without an exit; a write to it exits and changes nothing.
pub fn read_only_memory_exits_on_write<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::INCREMENT, MMIO) else { return };
    let page = Pages::new(Pages::ALIGN);
    page.write(0, &41u32.to_le_bytes());
    // SAFETY: `page` outlives the machine, dropped at the end.
    unsafe { machine.vm.map(MMIO, page.at(0), Pages::ALIGN, Perms::ReadExecute) }.expect("map");
    let mut vcpu = machine.vcpu();
    expect_write(&mut vcpu, MMIO, &42u32.to_le_bytes());
    assert_eq!(page.read(0), 41);
    drop(vcpu);
    drop(machine);
}

/// Misaligned, empty, wrapping and overlapping ranges, and those past the address space, are errors, and so is a double unmap.
pub fn bad_ranges_are_refused<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::WRITE_AND_SPIN, 0) else { return };
    let (vm, page) = (&machine.vm, Pages::new(Pages::ALIGN));
    let last = u64::MAX - (Pages::ALIGN as u64 - 1);
    let above = guest::BASE + MEMORY as u64;
    for (gpa, len) in [
        (above + 1, Pages::ALIGN),
        (above, 0),
        (above, 100),
        (last, Pages::ALIGN),
        (1 << 60, Pages::ALIGN),
        (guest::BASE, Pages::ALIGN),
    ] {
        // SAFETY: refused, so nothing is mapped; and `page` outlives the machine's use.
        let result = unsafe { vm.map(gpa, page.at(0), len, Perms::ReadWriteExecute) };
        assert!(result.is_err(), "mapped {len:#x} bytes at {gpa:#x}");
    }
    assert!(vm.unmap(above, Pages::ALIGN).is_err());
    assert!(vm.unmap(guest::BASE, MEMORY).is_ok());
    assert!(vm.unmap(guest::BASE, MEMORY).is_err());
}

/// A VM has the vCPUs that it was created with, and a limited number of interrupt lines.
pub fn vcpus_and_lines_that_do_not_exist_are_refused<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::WRITE_AND_SPIN, 0) else { return };
    for id in [VCPUS, u32::MAX] {
        let refused = machine.vm.bind_vcpu(id, &BootState::Parked).map(drop);
        assert!(matches!(refused, Err(Error::NoVcpu { id: named }) if named == id), "{refused:?}");
    }
    let refused = machine.vm.irq(u32::MAX).map(drop);
    assert!(matches!(refused, Err(Error::NoLine { line: u32::MAX })), "{refused:?}");
}

/// A write to a doorbell signals the event and causes no exit.
pub fn doorbell_rings_without_an_exit<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::WRITE_TWO_PAGES, MMIO) else { return };
    let Some(doorbell) = machine.vm.doorbell(MMIO) else {
        return skipped("this hypervisor has no doorbells: the exit rings");
    };
    let mut bell = File::from(doorbell.as_fd().try_clone_to_owned().expect("a second handle"));
    let mut vcpu = machine.vcpu();
    let mut count = [0; 8];
    assert!(bell.read(&mut count).is_err(), "rung before the guest ran");
    next(&mut vcpu, |exit| {
        assert!(matches!(exit, Exit::MmioWrite { gpa, .. } if gpa == MMIO + 0x1000), "{exit:?}");
    });
    bell.read_exact(&mut count).expect("the bell was rung");
    assert_eq!(u64::from_ne_bytes(count), 1);
}

/// Interrupt lines can be created and raised before any vCPU runs.
pub fn interrupt_lines_can_be_raised<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::WRITE_AND_SPIN, 0) else { return };
    for line in [5, 16, 23] {
        let irq = machine.vm.irq(line).expect("interrupt line");
        irq.raise().expect("raise");
        irq.clone().raise().expect("raise again");
    }
}

/// A line that is raised while the guest runs becomes pending in its interrupt controller, which the backend or its
/// hypervisor implements: accesses to it do not exit.
pub fn interrupt_line_reaches_the_controller<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::WAIT_FOR_INTERRUPT, MMIO) else { return };
    let irq = machine.vm.irq(LINE).expect("interrupt line");
    let first = |vcpu: &mut _| {
        expect_write(vcpu, MMIO, &0u32.to_le_bytes());
        irq.raise().expect("raise");
        expect_write(vcpu, MMIO, &LINE_PENDING.to_le_bytes());
    };
    machine.with_second(first, stay_parked);
}

/// Kicks make a vCPU in an endless loop exit, whenever they come.
pub fn kick_interrupts_a_running_vcpu<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::WRITE_AND_SPIN, MMIO) else { return };
    let doorbell = machine.vm.doorbell(MMIO);
    let mut vcpu = machine.vcpu();
    if let Some(bell) = doorbell {
        // With a doorbell, the first kick comes when the guest surely runs.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                wait_until(|| bell.clear().expect("doorbell"));
                machine.vm.kick(0).expect("kick");
            });
            assert_eq!(vcpu.run().expect("run"), Exit::Kicked);
        });
    } else {
        expect_write(&mut vcpu, MMIO, &0u32.to_le_bytes());
    }
    kick_around_entries(&machine, &mut vcpu);
}

/// A guest that faults and faults again at its handler's address can be kicked. aarch64 only: x86_64 resets.
pub fn endless_faults_can_be_kicked<B: Backend>() {
    let Some(program) = guest::FAULT else { return };
    let Some(machine) = Machine::new::<B>(program, MMIO) else { return };
    let mut vcpu = machine.vcpu();
    expect_write(&mut vcpu, MMIO, &0u32.to_le_bytes());
    kick_around_entries(&machine, &mut vcpu);
}

/// Kicks vCPU 0, whose guest causes no exits, at different times around its entries: each run is kicked.
fn kick_around_entries<V: Vm>(machine: &Machine<V>, vcpu: &mut V::Vcpu) {
    const KICKS: u32 = 200;
    let entries = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for kick in 1..=KICKS {
                wait_until(|| entries.load(Ordering::SeqCst) >= kick);
                (0..kick * 16).for_each(|_| std::hint::spin_loop());
                machine.vm.kick(0).expect("kick");
            }
        });
        // Also after a panic: the scope waits for the thread.
        let _end = OnDrop(|| entries.store(KICKS, Ordering::SeqCst));
        for _ in 0..KICKS {
            entries.fetch_add(1, Ordering::SeqCst);
            assert_eq!(vcpu.run().expect("run"), Exit::Kicked);
        }
    });
}

/// A kick of a vCPU that is not running holds for its next entry, and only for that.
pub fn kick_before_run_is_not_lost<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::COUNT, MMIO) else { return };
    machine.vm.kick(1).expect("kicking an unbound vCPU does nothing");
    let mut vcpu = machine.vcpu();
    machine.vm.kick(0).expect("kick");
    assert_eq!(vcpu.run().expect("run"), Exit::Kicked);
    expect_write(&mut vcpu, MMIO, &0u32.to_le_bytes());
}

/// A parked vCPU stays parked until something starts it; a kick gets its thread back.
pub fn parked_vcpu_does_not_run<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::COUNT, MMIO) else { return };
    let first = |vcpu: &mut _| {
        for n in 0..3u32 {
            machine.vm.kick(1).expect("kick");
            expect_write(vcpu, MMIO, &n.to_le_bytes());
        }
    };
    machine.with_second(first, stay_parked);
}

/// The guest starts the parked vCPU (INIT and startup IPIs, PSCI CPU_ON), which writes to memory, then to a device.
pub fn parked_vcpu_is_started_by_the_guest<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::START_SECOND, MMIO) else { return };
    machine.with_second(
        |vcpu| expect_write(vcpu, MMIO, &0x5au32.to_le_bytes()),
        |vcpu, _| expect_write(vcpu, SECOND_MMIO, &0u32.to_le_bytes()),
    );
}

/// A guest that resets itself exits (PSCI SYSTEM_RESET), and so does one with a fault that it has no handler for, where
/// the architecture resets the processor then (the x86 triple fault).
pub fn reset_exits<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::RESET, MMIO) else { return };
    next(&mut machine.vcpu(), |exit| assert_eq!(exit, Exit::Reset));
}

/// A guest that powers itself off exits. aarch64 only: PSCI SYSTEM_OFF.
pub fn shutdown_exits<B: Backend>() {
    let Some(program) = guest::SHUTDOWN else { return };
    let Some(machine) = Machine::new::<B>(program, MMIO) else { return };
    next(&mut machine.vcpu(), |exit| assert_eq!(exit, Exit::Shutdown));
}

/// An access to a device by an instruction that the processor does not describe to the hypervisor is an abort in the
/// guest, not the end of the VM. aarch64 only: the load of a pair.
pub fn access_that_cannot_be_emulated_aborts<B: Backend>() {
    let Some((program, syndrome)) = guest::ABORT else { return };
    let Some(machine) = Machine::new::<B>(program, MMIO) else { return };
    expect_write(&mut machine.vcpu(), MMIO, &u32::to_le_bytes(syndrome));
}
