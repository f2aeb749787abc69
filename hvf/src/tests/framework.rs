//! Hypervisor.framework as a script: its C functions keep registers and answer `hv_vcpu_run` with exits that a test
//! queued. They refuse calls from another thread than the vCPU's, as the framework does.

#![allow(clippy::missing_safety_doc, clippy::not_unsafe_ptr_arg_deref, missing_docs)]

use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use applevisor_sys::*;

use crate::sys::{RawExit, reason};

const OK: hv_return_t = 0;
const BAD_ARGUMENT: hv_return_t = hv_error_t::HV_BAD_ARGUMENT as hv_return_t;
const BUSY: hv_return_t = hv_error_t::HV_BUSY as hv_return_t;

static STATE: Mutex<Option<State>> = Mutex::new(None);
static CHANGED: Condvar = Condvar::new();
/// One test at a time: there is one VM in a process.
static TEST: Mutex<()> = Mutex::new(());

/// What the framework knows.
#[derive(Default)]
pub(super) struct State {
    pub(super) vm: bool,
    pub(super) gic: [u64; 2],
    pub(super) ipa_bits: u32,
    /// GPA, length and permissions.
    pub(super) mappings: Vec<(u64, usize, u64)>,
    pub(super) spis: Vec<u32>,
    pub(super) gic_state: Vec<u8>,
    pub(super) vcpus: Vec<FakeVcpu>,
    /// What happens at each entry of each vCPU.
    scripts: HashMap<u64, VecDeque<Step>>,
}

pub(super) struct FakeVcpu {
    thread: ThreadId,
    pub(super) alive: bool,
    exit: Box<RawExit>,
    pub(super) general: HashMap<u32, u64>,
    pub(super) system: HashMap<u32, u64>,
    pub(super) vectors: HashMap<u32, u128>,
    pub(super) icc: HashMap<u32, u64>,
    pub(super) masked: bool,
    pub(super) offset: u64,
    pub(super) pending: u64,
    canceled: bool,
    pub(super) entries: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Exit(RawExit),
    Fail,
}

impl Step {
    pub(super) fn exception(syndrome: u64, virtual_address: u64, physical_address: u64) -> Self {
        let reason = reason::EXCEPTION;
        Self::Exit(RawExit { reason, syndrome, virtual_address, physical_address })
    }

    pub(super) fn reason(reason: u32) -> Self {
        Self::Exit(RawExit { reason, syndrome: 0, virtual_address: 0, physical_address: 0 })
    }
}

/// Starts a test with a fresh framework.
pub(super) fn test() -> MutexGuard<'static, ()> {
    let guard = TEST.lock().unwrap_or_else(PoisonError::into_inner);
    *STATE.lock().unwrap_or_else(PoisonError::into_inner) = Some(State::default());
    guard
}

/// Looks at the framework, or changes it.
pub(super) fn with<T>(f: impl FnOnce(&mut State) -> T) -> T {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let result = f(state.get_or_insert_default());
    CHANGED.notify_all();
    result
}

/// Queues what happens at the next entries of a vCPU.
pub(super) fn script(vcpu: u64, steps: impl IntoIterator<Item = Step>) {
    with(|state| state.scripts.entry(vcpu).or_default().extend(steps));
}

/// Waits until a vCPU has been entered this often.
pub(super) fn wait_for_entries(vcpu: usize, entries: usize) {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let entered = |state: &Option<State>| {
        let state = state.as_ref().and_then(|state| state.vcpus.get(vcpu));
        state.is_some_and(|vcpu| vcpu.entries >= entries)
    };
    while !entered(&state) {
        state = CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// A call of a vCPU's own thread.
fn on_thread(vcpu: hv_vcpu_t, f: impl FnOnce(&mut FakeVcpu)) -> hv_return_t {
    with(|state| match state.vcpus.get_mut(vcpu as usize) {
        Some(vcpu) if vcpu.alive && vcpu.thread == thread::current().id() => {
            f(vcpu);
            OK
        }
        _ => BAD_ARGUMENT,
    })
}

/// Stands for every object: they have no content.
fn object() -> *mut c_void {
    static OBJECT: u64 = 0;
    (&raw const OBJECT).cast_mut().cast()
}

/// # Safety
///
/// `place` is valid for a write.
unsafe fn put<T>(place: *mut T, value: T) -> hv_return_t {
    // SAFETY: as the caller promises.
    unsafe { place.write(value) };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn os_release(object: *mut c_void) {
    assert!(!object.is_null(), "os_release of null is undefined");
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_config_create() -> *mut c_void {
    object()
}

/// Constants of the framework, each asked for by a function of its own.
macro_rules! constants {
    ($($name:ident: $type:ty = $value:expr;)*) => {
        $(#[unsafe(no_mangle)]
        unsafe extern "C" fn $name(value: *mut $type) -> hv_return_t {
            // SAFETY: the caller's pointer is valid.
            unsafe { put(value, $value) }
        })*
    };
}

constants! {
    hv_vm_config_get_default_ipa_size: u32 = 36;
    hv_vm_config_get_max_ipa_size: u32 = 40;
    hv_vm_get_max_vcpu_count: u32 = 4;
    hv_gic_get_distributor_size: usize = 0x1_0000;
    hv_gic_get_distributor_base_alignment: usize = 0x1_0000;
    hv_gic_get_redistributor_region_size: usize = 0x200_0000;
    hv_gic_get_redistributor_size: usize = 0x2_0000;
    hv_gic_get_redistributor_base_alignment: usize = 0x1_0000;
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_config_set_ipa_size(_: *mut c_void, bits: u32) -> hv_return_t {
    with(|state| state.ipa_bits = bits);
    OK
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_create(_: *mut c_void) -> hv_return_t {
    with(|state| match std::mem::replace(&mut state.vm, true) {
        false => OK,
        true => BUSY,
    })
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_destroy() -> hv_return_t {
    with(|state| {
        if state.vcpus.iter().any(|vcpu| vcpu.alive) {
            return BUSY;
        }
        (state.vm, state.vcpus, state.mappings) = (false, Vec::new(), Vec::new());
        OK
    })
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_config_create() -> *mut c_void {
    object()
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_config_set_distributor_base(_: *mut c_void, base: u64) -> hv_return_t {
    with(|state| state.gic[0] = base);
    OK
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_config_set_redistributor_base(_: *mut c_void, base: u64) -> hv_return_t {
    with(|state| state.gic[1] = base);
    OK
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_create(_: *mut c_void) -> hv_return_t {
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_get_spi_interrupt_range(
    base: *mut u32,
    count: *mut u32,
) -> hv_return_t {
    // SAFETY: the caller's pointers are valid.
    unsafe { put(base, 32) + put(count, 988) }
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_set_spi(intid: u32, _level: bool) -> hv_return_t {
    with(|state| state.spis.push(intid));
    OK
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_state_create() -> *mut c_void {
    object()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_state_get_size(_: *mut c_void, size: *mut usize) -> hv_return_t {
    // SAFETY: the caller's pointer is valid.
    unsafe { put(size, with(|state| state.gic_state.len())) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_state_get_data(_: *mut c_void, data: *mut c_void) -> hv_return_t {
    let bytes = with(|state| state.gic_state.clone());
    // SAFETY: the caller's buffer has the size that it asked for.
    unsafe { data.cast::<u8>().copy_from(bytes.as_ptr(), bytes.len()) };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_set_state(data: *const c_void, size: usize) -> hv_return_t {
    // SAFETY: the caller's slice.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) }.to_vec();
    with(|state| state.gic_state = bytes);
    OK
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_map(_: *const c_void, gpa: u64, size: usize, flags: u64) -> hv_return_t {
    with(|state| state.mappings.push((gpa, size, flags)));
    OK
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_unmap(gpa: u64, size: usize) -> hv_return_t {
    with(|state| state.mappings.retain(|&(at, len, _)| (at, len) != (gpa, size)));
    OK
}

/// Features of a host that has all of them; a GIC it has not before it is set.
const FEATURES: [(hv_sys_reg_t, u64); 3] = [
    (hv_sys_reg_t::ID_AA64PFR0_EL1, 0x1101_1111_1011_1111),
    (hv_sys_reg_t::ID_AA64DFR0_EL1, 0x0000_0000_1030_5f08),
    (hv_sys_reg_t::ID_AA64MMFR0_EL1, 0x0000_1111_ff10_0005),
];

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_vcpu_create(
    vcpu: *mut hv_vcpu_t,
    exit: *mut *const hv_vcpu_exit_t,
    _: *mut c_void,
) -> hv_return_t {
    with(|state| {
        let record = RawExit { reason: 9, syndrome: 0, virtual_address: 0, physical_address: 0 };
        let mut fake = FakeVcpu {
            thread: thread::current().id(),
            alive: true,
            exit: Box::new(record),
            general: (0..35).map(|reg| (reg, 0xdead)).collect(),
            system: FEATURES.iter().map(|&(reg, value)| (reg as u32, value)).collect(),
            vectors: HashMap::new(),
            icc: HashMap::new(),
            masked: false,
            offset: 0,
            pending: 0,
            canceled: false,
            entries: 0,
        };
        // SAFETY: the caller's pointers are valid.
        unsafe { put(exit, (&raw mut *fake.exit).cast()) };
        state.vcpus.push(fake);
        // SAFETY: as above.
        unsafe { put(vcpu, state.vcpus.len() as u64 - 1) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_destroy(vcpu: hv_vcpu_t) -> hv_return_t {
    on_thread(vcpu, |vcpu| vcpu.alive = false)
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_run(id: hv_vcpu_t) -> hv_return_t {
    let entered = on_thread(id, |vcpu| vcpu.entries += 1);
    if entered != OK {
        return entered;
    }
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let State { vcpus, scripts, .. } = state.get_or_insert_default();
        let vcpu = &mut vcpus[id as usize];
        if std::mem::take(&mut vcpu.canceled) {
            vcpu.exit.reason = reason::CANCELED;
            return OK;
        }
        match scripts.entry(id).or_default().pop_front() {
            Some(Step::Exit(exit)) => {
                *vcpu.exit = exit;
                vcpu.masked |= exit.reason == reason::VTIMER;
                return OK;
            }
            Some(Step::Fail) => return BUSY,
            None => state = CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_vcpus_exit(vcpus: *const hv_vcpu_t, count: u32) -> hv_return_t {
    // SAFETY: the caller's slice.
    let ids = unsafe { std::slice::from_raw_parts(vcpus, count as usize) };
    with(|state| {
        ids.iter().for_each(|&id| state.vcpus[id as usize].canceled = true);
    });
    OK
}

/// Getters and setters of a table of registers.
macro_rules! registers {
    ($($get:ident $set:ident $reg:ty: $value:ty = $table:ident;)*) => {
        $(#[unsafe(no_mangle)]
        unsafe extern "C" fn $get(vcpu: hv_vcpu_t, reg: $reg, value: *mut $value) -> hv_return_t {
            on_thread(vcpu, |vcpu| {
                let stored = vcpu.$table.get(&(reg as u32)).copied().unwrap_or_default();
                // SAFETY: the caller's pointer is valid.
                unsafe { put(value, stored) };
            })
        }

        #[unsafe(no_mangle)]
        extern "C" fn $set(vcpu: hv_vcpu_t, reg: $reg, value: $value) -> hv_return_t {
            on_thread(vcpu, |vcpu| {
                vcpu.$table.insert(reg as u32, value);
            })
        })*
    };
}

registers! {
    hv_vcpu_get_reg hv_vcpu_set_reg hv_reg_t: u64 = general;
    hv_vcpu_get_sys_reg hv_vcpu_set_sys_reg hv_sys_reg_t: u64 = system;
    hv_vcpu_get_simd_fp_reg scripted_set_vector hv_simd_fp_reg_t: u128 = vectors;
    hv_gic_get_icc_reg hv_gic_set_icc_reg hv_gic_icc_reg_t: u64 = icc;
}

// The framework's function takes the value in V0; an integer is in X2 and X3.
#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".globl hv_vcpu_set_simd_fp_reg",
    "hv_vcpu_set_simd_fp_reg:",
    "umov x2, v0.d[0]",
    "umov x3, v0.d[1]",
    "b scripted_set_vector",
);

#[cfg(not(target_arch = "aarch64"))]
#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_simd_fp_reg(
    vcpu: hv_vcpu_t,
    reg: hv_simd_fp_reg_t,
    value: u128,
) -> hv_return_t {
    scripted_set_vector(vcpu, reg, value)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_get_redistributor_base(vcpu: hv_vcpu_t, base: *mut u64) -> hv_return_t {
    // SAFETY: the caller's pointer is valid.
    unsafe { put(base, with(|state| state.gic[1]) + vcpu * 0x2_0000) }
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_set_redistributor_reg(
    vcpu: hv_vcpu_t,
    reg: hv_gic_redistributor_reg_t,
    value: u64,
) -> hv_return_t {
    assert_eq!(reg, hv_gic_redistributor_reg_t::ISPENDR0);
    on_thread(vcpu, |vcpu| vcpu.pending |= value)
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_vtimer_mask(vcpu: hv_vcpu_t, masked: bool) -> hv_return_t {
    on_thread(vcpu, |vcpu| vcpu.masked = masked)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_vcpu_get_vtimer_mask(vcpu: hv_vcpu_t, masked: *mut bool) -> hv_return_t {
    // SAFETY: the caller's pointer is valid.
    on_thread(vcpu, |vcpu| unsafe {
        put(masked, vcpu.masked);
    })
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_vtimer_offset(vcpu: hv_vcpu_t, offset: u64) -> hv_return_t {
    on_thread(vcpu, |vcpu| vcpu.offset = offset)
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_trap_debug_exceptions(vcpu: hv_vcpu_t, _: bool) -> hv_return_t {
    on_thread(vcpu, |_| ())
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_trap_debug_reg_accesses(vcpu: hv_vcpu_t, _: bool) -> hv_return_t {
    on_thread(vcpu, |_| ())
}
