//! What the framework refuses or does that the backend never asks for.

#![cfg(all(target_os = "linux", target_arch = "aarch64"))]

use std::alloc::{Layout, alloc_zeroed};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use applevisor_sys::*;
use boxlite_hvf_double as _;

const OK: hv_return_t = 0;
const BAD_ARGUMENT: hv_return_t = hv_error_t::HV_BAD_ARGUMENT as hv_return_t;
const BUSY: hv_return_t = hv_error_t::HV_BUSY as hv_return_t;
const UNSUPPORTED: hv_return_t = hv_error_t::HV_UNSUPPORTED as hv_return_t;

const GPA: u64 = 0x8000_0000;
const SIZE: usize = 64 << 10;
const RWX: u64 = HV_MEMORY_READ | HV_MEMORY_WRITE | HV_MEMORY_EXEC;

/// A VM with memory that has `program` at its beginning.
struct Vm {
    memory: *mut u8,
    _alone: MutexGuard<'static, ()>,
}

impl Vm {
    fn new(program: &[u32]) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: null is the default configuration.
        match unsafe { hv_vm_create(ptr::null_mut()) } {
            UNSUPPORTED => {
                eprintln!("SKIPPED: no /dev/kvm");
                return None;
            }
            result => assert_eq!(result, OK),
        }
        // SAFETY: the objects are released once; the memory is never freed.
        unsafe {
            let config = hv_gic_config_create();
            assert_eq!(hv_gic_config_set_distributor_base(config, 0x800_0000), OK);
            assert_eq!(hv_gic_config_set_redistributor_base(config, 0xa00_0000), OK);
            assert_eq!(hv_gic_create(config), OK);
            os_release(config);
            let memory = alloc_zeroed(Layout::from_size_align(SIZE, SIZE).unwrap());
            memory.cast::<u32>().copy_from(program.as_ptr(), program.len());
            assert_eq!(hv_vm_map(memory.cast(), GPA, SIZE, RWX), OK);
            Some(Self { memory, _alone: alone })
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // SAFETY: the tests destroy their vCPUs before.
        assert_eq!(unsafe { hv_vm_destroy() }, OK);
    }
}

/// A vCPU at the beginning of the memory.
struct Cpu(hv_vcpu_t, *const hv_vcpu_exit_t);

impl Cpu {
    fn new() -> Self {
        let (mut id, mut exit) = (0, ptr::null());
        // SAFETY: the pointers are valid for the calls.
        unsafe {
            assert_eq!(hv_vcpu_create(&mut id, &mut exit, ptr::null_mut()), OK);
            assert_eq!(hv_vcpu_set_sys_reg(id, hv_sys_reg_t::MPIDR_EL1, id), OK);
            assert_eq!(hv_vcpu_set_sys_reg(id, hv_sys_reg_t::SCTLR_EL1, 0xc5_0078), OK);
            assert_eq!(hv_vcpu_set_sys_reg(id, hv_sys_reg_t::CNTV_CTL_EL0, 0), OK);
        }
        let cpu = Self(id, exit);
        cpu.set(hv_reg_t::PC, GPA);
        cpu.set(hv_reg_t::CPSR, 0x3c5);
        cpu
    }

    fn get(&self, reg: hv_reg_t) -> u64 {
        let mut value = 0;
        // SAFETY: the pointer is valid for the call.
        assert_eq!(unsafe { hv_vcpu_get_reg(self.0, reg, &mut value) }, OK);
        value
    }

    fn set(&self, reg: hv_reg_t, value: u64) {
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { hv_vcpu_set_reg(self.0, reg, value) }, OK);
    }

    fn run(&self) -> hv_vcpu_exit_t {
        // SAFETY: the vCPU exists, and with it its record.
        unsafe {
            assert_eq!(hv_vcpu_run(self.0), OK);
            self.1.read()
        }
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        // SAFETY: the vCPU exists.
        assert_eq!(unsafe { hv_vcpu_destroy(self.0) }, OK);
    }
}

#[test]
fn a_process_has_one_vm_and_destroys_it_after_its_vcpus() {
    let Some(vm) = Vm::new(&[]) else { return };
    // SAFETY: null is the default configuration; nothing is destroyed.
    unsafe {
        assert_eq!(hv_vm_create(ptr::null_mut()), BUSY);
        let cpu = Cpu::new();
        assert_eq!(hv_vm_destroy(), BUSY);
        drop(cpu);
    }
    drop(vm);
}

#[test]
fn mappings_are_pages_of_16_kib_and_do_not_overlap() {
    let Some(vm) = Vm::new(&[]) else { return };
    let (memory, free) = (vm.memory, GPA + SIZE as u64);
    for (offset, gpa, size) in [
        (4096, free, 0x4000),
        (0, free + 4096, 0x4000),
        (0, free, 4096),
        (0, free, 0),
        (0, 1 << 36, 0x4000),
        (0, u64::MAX - 0x3fff, 0x4000),
    ] {
        // SAFETY: refused; the memory would be long enough.
        let result = unsafe { hv_vm_map(memory.add(offset).cast(), gpa, size, RWX) };
        assert_eq!(result, BAD_ARGUMENT, "{offset:#x}, {gpa:#x}, {size:#x}");
    }
    // SAFETY: refused.
    assert_ne!(unsafe { hv_vm_map(memory.cast(), GPA + 0x4000, 0x4000, RWX) }, OK);
    // SAFETY: takes memory away from the guest only.
    unsafe {
        assert_eq!(hv_vm_unmap(GPA, 0x4000), BAD_ARGUMENT);
        assert_eq!(hv_vm_unmap(GPA, SIZE), OK);
        assert_eq!(hv_vm_unmap(GPA, SIZE), BAD_ARGUMENT);
        assert_eq!(hv_vm_map(memory.cast(), GPA, SIZE, RWX), OK);
    }
}

#[test]
fn a_vcpu_belongs_to_its_thread() {
    let Some(_vm) = Vm::new(&[]) else { return };
    let cpu = Cpu::new();
    let id = cpu.0;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut value = 0;
            // SAFETY: refused; the pointer is valid.
            unsafe {
                assert_eq!(hv_vcpu_get_reg(id, hv_reg_t::X0, &mut value), BAD_ARGUMENT);
                assert_eq!(hv_vcpu_set_reg(id, hv_reg_t::X0, 1), BAD_ARGUMENT);
                assert_eq!(hv_vcpu_run(id), BAD_ARGUMENT);
                assert_eq!(hv_vcpu_destroy(id), BAD_ARGUMENT);
            }
        });
    });
}

#[test]
fn registers_of_a_new_vcpu_are_senseless() {
    let Some(_vm) = Vm::new(&[]) else { return };
    let cpu = Cpu::new();
    assert_eq!(cpu.get(hv_reg_t::X7), 0xdead_beef_dead_beef);
    let mut value = 0;
    // SAFETY: the pointer is valid for the call.
    assert_eq!(unsafe { hv_vcpu_get_sys_reg(cpu.0, hv_sys_reg_t::SP_EL1, &mut value) }, OK);
    assert_eq!(value, 0xdead_beef_dead_beef);
    // SAFETY: as above.
    assert_eq!(unsafe { hv_vcpu_get_sys_reg(cpu.0, hv_sys_reg_t::MPIDR_EL1, &mut value) }, OK);
    assert_eq!(value, 1 << 31);
}

#[test]
fn a_cancellation_holds_for_one_entry() {
    // b .
    let Some(_vm) = Vm::new(&[0x1400_0000]) else { return };
    let cpu = Cpu::new();
    for _ in 0..3 {
        // SAFETY: the array has one element.
        assert_eq!(unsafe { hv_vcpus_exit(&cpu.0, 1) }, OK);
        assert_eq!(cpu.run().reason, hv_exit_reason_t::CANCELED);
        assert_eq!(cpu.get(hv_reg_t::PC), GPA);
    }
    let unknown = 99;
    // SAFETY: the array has one element.
    assert_eq!(unsafe { hv_vcpus_exit(&unknown, 1) }, BAD_ARGUMENT);
}

#[test]
fn permissions_change_between_entries() {
    // str w1, [x2]; str w1, [x2]; hvc #0
    let Some(_vm) = Vm::new(&[0xb900_0041, 0xb900_0041, 0xd400_0002]) else { return };
    let cpu = Cpu::new();
    let at = GPA + 0x100;
    cpu.set(hv_reg_t::X0, 0x8400_0000);
    cpu.set(hv_reg_t::X2, at);
    // SAFETY: the guest loses the right to write.
    assert_eq!(unsafe { hv_vm_protect(GPA, SIZE, HV_MEMORY_READ | HV_MEMORY_EXEC) }, OK);
    let exit = cpu.run();
    // A store of 4 bytes from W1: a permission fault.
    let exception = (exit.exception.syndrome, exit.exception.physical_address);
    let syndrome = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 1 << 16 | 1 << 6 | 0b00_1111;
    assert_eq!((exit.reason, exception), (hv_exit_reason_t::EXCEPTION, (syndrome, at)));
    assert_eq!(exit.exception.virtual_address, at);
    cpu.set(hv_reg_t::PC, GPA + 4);
    // SAFETY: the memory is still there.
    assert_eq!(unsafe { hv_vm_protect(GPA, SIZE, RWX) }, OK);
    let exit = cpu.run();
    assert_eq!(exit.exception.syndrome, 0x16 << 26 | 1 << 25);
    assert_eq!(cpu.get(hv_reg_t::PC), GPA + 12, "past the HVC");
}

#[test]
fn a_vmm_that_completes_an_access_wrongly_is_found_out() {
    // ldrb w1, [x0]; hvc #0
    let Some(_vm) = Vm::new(&[0x3940_0001, 0xd400_0002]) else { return };
    let cpu = Cpu::new();
    cpu.set(hv_reg_t::X0, GPA + (1 << 20));
    assert_eq!(cpu.run().reason, hv_exit_reason_t::EXCEPTION);
    // The load of a byte leaves nothing above it.
    cpu.set(hv_reg_t::X1, 0x180);
    cpu.set(hv_reg_t::PC, GPA + 4);
    // SAFETY: the vCPU exists.
    assert_ne!(unsafe { hv_vcpu_run(cpu.0) }, OK);
}
