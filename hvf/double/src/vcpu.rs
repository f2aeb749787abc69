//! vCPUs. Each is kept by the thread that created it, so that a call from another thread does not find it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use applevisor_sys::{
    hv_error_t, hv_exit_reason_t, hv_reg_t, hv_return_t, hv_simd_fp_reg_t, hv_sys_reg_t,
    hv_vcpu_exit_exception_t, hv_vcpu_exit_t, hv_vcpu_t,
};
use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

use crate::oracle::Pending;
use crate::sys::{Result, code, enter, failed, kick_signal, kvm, lock, of_errno, put, retry_busy};
use crate::vm::Vm;
use crate::{registers, vm};

thread_local! {
    static OF_THREAD: RefCell<BTreeMap<hv_vcpu_t, Vcpu>> = const { RefCell::new(BTreeMap::new()) };
}

/// The vCPUs of all threads, for those who make them exit.
static TARGETS: Mutex<BTreeMap<hv_vcpu_t, Target>> = Mutex::new(BTreeMap::new());

struct Target {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
    canceled: Arc<AtomicBool>,
}

// SAFETY: the pointer is to an atomic in a mapping that lives until the vCPU is destroyed, which removes its target
// before; the thread ends only after it.
unsafe impl Send for Target {}

/// A vCPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(crate) id: u64,
    pub(crate) vm: Arc<Vm>,
    pub(crate) fd: VcpuFd,
    /// The page shared with KVM; `fd` keeps it mapped.
    pub(crate) run: *mut kvm_run,
    /// The caller's exit record, from a box.
    exit: *mut hv_vcpu_exit_t,
    canceled: Arc<AtomicBool>,
    /// The access that KVM has not completed.
    pub(crate) pending: Option<Pending>,
    timer_masked: bool,
    offset: u64,
}

/// Whether there is a vCPU.
pub(crate) fn exist() -> bool {
    !lock(&TARGETS).is_empty()
}

/// Calls `f` with a vCPU of this thread.
pub(crate) fn with<T>(id: hv_vcpu_t, f: impl FnOnce(&mut Vcpu) -> Result<T>) -> Result<T> {
    OF_THREAD.with_borrow_mut(|vcpus| match vcpus.get_mut(&id) {
        Some(vcpu) => f(vcpu),
        None => Err(failed(hv_error_t::HV_BAD_ARGUMENT, "a vCPU that this thread did not create")),
    })
}

impl Vcpu {
    fn create() -> Result<Self> {
        let vm = vm::current()?;
        let (id, mut fd) = vm.gic.add_vcpu(|id| {
            let fd = retry_busy(|| vm.fd.create_vcpu(id)).map_err(kvm("KVM_CREATE_VCPU"))?;
            Ok((id, fd))
        })?;
        fd.vcpu_init(&vm.init).map_err(kvm("KVM_ARM_VCPU_INIT"))?;
        registers::poison(&fd)?;
        let run = &raw mut *fd.get_kvm_run();
        let exit = Box::into_raw(Box::new(hv_vcpu_exit_t {
            reason: hv_exit_reason_t::UNKNOWN,
            exception: hv_vcpu_exit_exception_t {
                syndrome: 0,
                virtual_address: 0,
                physical_address: 0,
            },
        }));
        let canceled = Arc::new(AtomicBool::new(false));
        let (pending, timer_masked, offset) = (None, false, 0);
        let vcpu = Self { id, vm, fd, run, exit, canceled, pending, timer_masked, offset };
        vcpu.register();
        Ok(vcpu)
    }

    fn register(&self) {
        // SAFETY: no requirements.
        let thread = unsafe { libc::pthread_self() };
        let (immediate_exit, canceled) = (ptr::from_ref(self.immediate_exit()), &self.canceled);
        let target = Target { thread, immediate_exit, canceled: canceled.clone() };
        lock(&TARGETS).insert(self.id, target);
    }

    pub(crate) fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the page is mapped as long as `self.fd`; others write this byte atomically, too.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run).immediate_exit) }
    }

    /// A general register, PC, FPCR, FPSR or CPSR: as the VMM has set it, if KVM does not know that yet.
    pub(crate) fn get(&self, reg: hv_reg_t) -> Result<u64> {
        let id = registers::general(reg);
        let written = self.pending.as_ref().and_then(|pending| pending.written(id));
        written.map_or_else(|| registers::get(&self.fd, id), Ok)
    }

    fn set(&mut self, reg: hv_reg_t, value: u64) -> Result<()> {
        let id = registers::general(reg);
        match &mut self.pending {
            Some(pending) if !matches!(reg, hv_reg_t::FPCR | hv_reg_t::FPSR) => {
                pending.write(id, value);
                Ok(())
            }
            _ => registers::set(&self.fd, id, value),
        }
    }

    pub(crate) fn get_system(&self, reg: hv_sys_reg_t) -> Result<u64> {
        registers::get(&self.fd, registers::system(reg)?)
    }

    fn set_system(&self, reg: hv_sys_reg_t, value: u64) -> Result<()> {
        // Bit 31 of MPIDR_EL1 is one.
        let affinity = reg == hv_sys_reg_t::MPIDR_EL1;
        let value = if affinity { value | 1 << 31 } else { value };
        registers::set(&self.fd, registers::system(reg)?, value)?;
        if affinity {
            self.vm.gic.set_affinity(self.id, value);
        }
        Ok(())
    }

    /// Runs the guest to its next exit.
    fn run(&mut self) -> Result<()> {
        self.complete()?;
        self.vm.gic.initialize(&self.vm.fd)?;
        let exit = loop {
            // A cancellation sets the flag, then the byte, then sends the signal: here the byte is cleared before the flag is
            // looked at, so that none is lost.
            self.immediate_exit().store(0, Ordering::SeqCst);
            if self.canceled.swap(false, Ordering::SeqCst) {
                break (hv_exit_reason_t::CANCELED, None);
            }
            self.vm.running.fetch_add(1, Ordering::SeqCst);
            let entered = enter(&self.fd);
            self.vm.running.fetch_sub(1, Ordering::SeqCst);
            match entered {
                Ok(()) => {
                    if let Some(exception) = self.exit()? {
                        break (hv_exit_reason_t::EXCEPTION, Some(exception));
                    }
                }
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(e) => return Err(kvm("KVM_RUN")(e)),
            }
        };
        let none =
            hv_vcpu_exit_exception_t { syndrome: 0, virtual_address: 0, physical_address: 0 };
        let record = hv_vcpu_exit_t { reason: exit.0, exception: exit.1.unwrap_or(none) };
        // SAFETY: the record lives as long as the vCPU; its owner reads it between calls only.
        unsafe { self.exit.write(record) };
        Ok(())
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        lock(&TARGETS).remove(&self.id);
        // SAFETY: from a box, and its owner has given it up with the vCPU.
        drop(unsafe { Box::from_raw(self.exit) });
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_vcpu_create(
    vcpu: *mut hv_vcpu_t,
    exit: *mut *const hv_vcpu_exit_t,
    _config: *mut c_void,
) -> hv_return_t {
    match Vcpu::create() {
        Ok(created) => {
            let (id, record) = (created.id, created.exit);
            OF_THREAD.with_borrow_mut(|vcpus| vcpus.insert(id, created));
            // SAFETY: the caller's pointers.
            unsafe {
                match put(exit, Ok(record.cast_const())) {
                    0 => put(vcpu, Ok(id)),
                    error => error,
                }
            }
        }
        Err(error) => code(Err(error)),
    }
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_destroy(vcpu: hv_vcpu_t) -> hv_return_t {
    code(with(vcpu, |_| Ok(())).map(|()| {
        OF_THREAD.with_borrow_mut(|vcpus| vcpus.remove(&vcpu));
    }))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_run(vcpu: hv_vcpu_t) -> hv_return_t {
    code(with(vcpu, Vcpu::run))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_vcpus_exit(vcpus: *const hv_vcpu_t, count: u32) -> hv_return_t {
    if vcpus.is_null() {
        return code(Err(hv_error_t::HV_BAD_ARGUMENT));
    }
    // SAFETY: the caller's slice.
    let ids = unsafe { std::slice::from_raw_parts(vcpus, count as usize) };
    let targets = lock(&TARGETS);
    code(ids.iter().try_for_each(|id| {
        let target = targets.get(id).ok_or(hv_error_t::HV_BAD_ARGUMENT)?;
        target.canceled.store(true, Ordering::SeqCst);
        // SAFETY: registered vCPUs exist, and their destruction waits for the lock held here.
        unsafe { (*target.immediate_exit).store(1, Ordering::SeqCst) };
        // SAFETY: as above: the thread has not ended. The signal has a handler.
        match unsafe { libc::pthread_kill(target.thread, kick_signal()) } {
            0 => Ok(()),
            _ => Err(failed(hv_error_t::HV_ERROR, "pthread_kill failed")),
        }
    }))
}

/// Getters and setters.
macro_rules! access {
    ($($get:ident $set:ident ($($reg:ident: $type:ty)?) $value:ty: $read:expr, $write:expr;)*) => {
        $(#[unsafe(no_mangle)]
        unsafe extern "C" fn $get(
            vcpu: hv_vcpu_t,
            $($reg: $type,)?
            value: *mut $value,
        ) -> hv_return_t {
            let read: fn(&Vcpu $(, $type)?) -> Result<$value> = $read;
            // SAFETY: the caller's pointer.
            unsafe { put(value, with(vcpu, |vcpu| read(vcpu $(, $reg)?))) }
        }

        #[unsafe(no_mangle)]
        extern "C" fn $set(vcpu: hv_vcpu_t, $($reg: $type,)? value: $value) -> hv_return_t {
            let write: fn(&mut Vcpu $(, $type)?, $value) -> Result<()> = $write;
            code(with(vcpu, |vcpu| write(vcpu $(, $reg)?, value)))
        })*
    };
}

access! {
    hv_vcpu_get_reg hv_vcpu_set_reg (reg: hv_reg_t) u64: Vcpu::get, Vcpu::set;
    hv_vcpu_get_sys_reg hv_vcpu_set_sys_reg (reg: hv_sys_reg_t) u64:
        Vcpu::get_system, |vcpu, reg, value| vcpu.set_system(reg, value);
    hv_vcpu_get_simd_fp_reg double_set_vector (reg: hv_simd_fp_reg_t) u128: get_vector, set_vector;
    hv_vcpu_get_vtimer_mask hv_vcpu_set_vtimer_mask () bool:
        |vcpu| Ok(vcpu.timer_masked),
        |vcpu, masked| { vcpu.timer_masked = masked; Ok(()) };
    hv_vcpu_get_vtimer_offset hv_vcpu_set_vtimer_offset () u64:
        |vcpu| Ok(vcpu.offset),
        |vcpu, offset| { vcpu.vm.set_offset(offset)?; vcpu.offset = offset; Ok(()) };
    // KVM leaves both to the guest.
    hv_vcpu_get_trap_debug_exceptions hv_vcpu_set_trap_debug_exceptions () bool:
        |_| Ok(false), |_, trap| if trap { Err(hv_error_t::HV_UNSUPPORTED) } else { Ok(()) };
    hv_vcpu_get_trap_debug_reg_accesses hv_vcpu_set_trap_debug_reg_accesses () bool:
        |_| Ok(false), |_, trap| if trap { Err(hv_error_t::HV_UNSUPPORTED) } else { Ok(()) };
}

fn get_vector(vcpu: &Vcpu, reg: hv_simd_fp_reg_t) -> Result<u128> {
    let mut value = [0; 16];
    let id = registers::vector(reg);
    vcpu.fd.get_one_reg(id, &mut value).map_err(|e| of_errno(e.errno()))?;
    Ok(u128::from_le_bytes(value))
}

fn set_vector(vcpu: &mut Vcpu, reg: hv_simd_fp_reg_t, value: u128) -> Result<()> {
    let id = registers::vector(reg);
    vcpu.fd.set_one_reg(id, &value.to_le_bytes()).map(drop).map_err(|e| of_errno(e.errno()))
}

// The framework's function takes the value in V0; an integer is in X2 and X3.
std::arch::global_asm!(
    ".globl hv_vcpu_set_simd_fp_reg",
    "hv_vcpu_set_simd_fp_reg:",
    "umov x2, v0.d[0]",
    "umov x3, v0.d[1]",
    "b double_set_vector",
);
