//! Tests that every backend must pass, written once.
//!
//! A backend says how to create a VM ([`Backend`]) and calls [`conformance_tests!`](crate::conformance_tests)
//! in its test module. The guests are a few instructions each: they run even where the
//! hypervisor emulates every instruction.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
use self::x86_64 as guest;

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::{BootState, Exit, Perms, Vcpu, Vm, VmConfig};

/// The suite's access to a hypervisor.
pub trait Backend {
    /// The backend's VM.
    type Vm: Vm;

    /// Creates a VM. The error says why this host cannot: the tests are then reported as skipped.
    fn vm(config: &VmConfig) -> Result<Self::Vm, String>;
}

/// Declares a `#[test]` for every check of the suite, for the given [`Backend`].
#[macro_export]
macro_rules! conformance_tests {
    ($backend:ty) => {
        $crate::conformance_tests!($backend:
            mmio_exits_carry_every_width
            port_io_exits
            memory_is_mapped_and_unmapped
            read_only_memory_exits_on_write
            bad_ranges_are_refused
            doorbell_rings_without_an_exit
            interrupt_lines_can_be_raised
            kick_interrupts_a_running_vcpu
            kick_before_run_is_not_lost
            parked_vcpu_does_not_run
            fault_without_handler_resets
            saved_state_continues_in_another_machine
        );
    };
    ($backend:ty: $($check:ident)*) => {
        $(#[test]
        fn $check() {
            $crate::conformance::$check::<$backend>();
        })*
    };
}

/// Guest memory of a test, from GPA 0.
const MEMORY: usize = 1 << 20;
/// A GPA without memory, 4 KiB aligned, within reach of the guest's page tables.
const MMIO: u64 = 0x20_0000;
/// Page of the guest's data, within [`MEMORY`].
const DATA: u64 = 0x4_0000;

/// A VM with memory and a program in it.
struct Machine<V: Vm> {
    vm: Arc<V>,
    memory: Pages,
    boot: BootState,
}

/// Reports that a test did not run.
fn skipped(reason: &str) {
    eprintln!("SKIPPED: {reason}");
}

impl<V: Vm> Machine<V> {
    fn new<B: Backend<Vm = V>>(program: &[u8], argument: u64) -> Option<Self> {
        let config = VmConfig { vcpus: 2, nested: false, address_end: MMIO + (1 << 20) };
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
        unsafe { vm.map(0, memory.at(0), MEMORY, Perms::ReadWriteExecute) }.expect("map");
        Some(Self { vm, memory, boot })
    }

    fn vcpu(&self) -> V::Vcpu {
        self.vm.bind_vcpu(0, &self.boot).expect("bind vCPU 0")
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

/// Misaligned, empty, wrapping and overlapping ranges are errors, and so is a double unmap.
pub fn bad_ranges_are_refused<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::SPIN, 0) else { return };
    let (vm, page) = (&machine.vm, Pages::new(Pages::ALIGN));
    let last = u64::MAX - (Pages::ALIGN as u64 - 1);
    let above = MEMORY as u64;
    for (gpa, len) in [
        (above + 1, Pages::ALIGN),
        (above, 0),
        (above, 100),
        (last, Pages::ALIGN),
        (0, Pages::ALIGN),
    ] {
        // SAFETY: refused, so nothing is mapped; and `page` outlives the machine's use.
        let result = unsafe { vm.map(gpa, page.at(0), len, Perms::ReadWriteExecute) };
        assert!(result.is_err(), "mapped {len:#x} bytes at {gpa:#x}");
    }
    assert!(vm.unmap(above, Pages::ALIGN).is_err());
    assert!(vm.unmap(0, MEMORY).is_ok());
    assert!(vm.unmap(0, MEMORY).is_err());
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
    let Some(machine) = Machine::new::<B>(guest::SPIN, 0) else { return };
    for line in [5, 16, 23] {
        let irq = machine.vm.irq(line).expect("interrupt line");
        irq.raise().expect("raise");
        irq.clone().raise().expect("raise again");
    }
}

/// A kick makes a vCPU in an endless loop exit.
pub fn kick_interrupts_a_running_vcpu<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::SPIN, 0) else { return };
    let vm = machine.vm.clone();
    let mut vcpu = machine.vcpu();
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        vm.kick(0).expect("kick");
    });
    assert_eq!(vcpu.run().expect("run"), Exit::Kicked);
    kicker.join().expect("kicker");
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
    let mut first = machine.vcpu();
    let vm = machine.vm.clone();
    std::thread::scope(|scope| {
        let parked = scope.spawn(|| {
            let mut second = vm.bind_vcpu(1, &BootState::Parked).expect("bind vCPU 1");
            vm.kick(1).expect("kick");
            assert_eq!(second.run().expect("run"), Exit::Kicked);
        });
        expect_write(&mut first, MMIO, &0u32.to_le_bytes());
        parked.join().expect("parked vCPU");
    });
}

/// A fault without a handler resets the VM instead of hanging it.
pub fn fault_without_handler_resets<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::FAULT, MMIO) else { return };
    let mut vcpu = machine.vcpu();
    next(&mut vcpu, |exit| assert_eq!(exit, Exit::Reset));
}

/// A counter saved in one VM continues in another.
pub fn saved_state_continues_in_another_machine<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::COUNT, MMIO) else { return };
    let mut vcpu = machine.vcpu();
    for n in 0..3u32 {
        expect_write(&mut vcpu, MMIO, &n.to_le_bytes());
    }
    let state = vcpu.save().expect("save");
    expect_write(&mut vcpu, MMIO, &3u32.to_le_bytes());

    let Some(other) = Machine::new::<B>(guest::COUNT, MMIO) else { return };
    let mut vcpu = other.vcpu();
    vcpu.restore(&state).expect("restore");
    for n in 3..6u32 {
        expect_write(&mut vcpu, MMIO, &n.to_le_bytes());
    }
    assert_eq!(other.memory.read(DATA as usize), 0, "the counter lives in a register");
}

/// Zeroed, page-aligned host memory.
struct Pages {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: the memory is owned, and accessed by volatile reads and writes only.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// A multiple of every host's page size.
    const ALIGN: usize = 64 << 10;

    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len, Self::ALIGN).expect("layout");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Self { start, layout }
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.layout.size());
        // SAFETY: within the allocation.
        unsafe { self.start.add(offset) }
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.layout.size());
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: within the allocation; volatile, because a guest may see it.
            unsafe { self.at(offset + i).write_volatile(*byte) };
        }
    }

    fn read(&self, offset: usize) -> u32 {
        assert!(offset + 4 <= self.layout.size() && offset.is_multiple_of(4));
        // SAFETY: within the allocation and aligned.
        unsafe { self.at(offset).cast::<u32>().read_volatile() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}
