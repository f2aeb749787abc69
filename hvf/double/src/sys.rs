//! Results of the framework, and system calls that have no wrapper.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use applevisor_sys::{hv_error_t, hv_return_t};
use kvm_bindings::kvm_arm_counter_offset;
use kvm_ioctls::{VcpuFd, VmFd};

/// KVM_RUN.
const RUN: libc::c_ulong = 0xae80;
/// KVM_ARM_SET_COUNTER_OFFSET (Linux 6.4).
const SET_COUNTER_OFFSET: libc::c_ulong = 0x4010_aeb5;

/// Limit of waiting for vCPUs that are in a short system call.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

pub(crate) type Result<T> = std::result::Result<T, hv_error_t>;

/// What a function of the framework returns.
pub(crate) fn code(result: Result<()>) -> hv_return_t {
    match result {
        Ok(()) => hv_error_t::HV_SUCCESS as hv_return_t,
        Err(error) => error as hv_return_t,
    }
}

/// Returns a value by a pointer.
///
/// # Safety
///
/// `place` is null or valid for a write.
pub(crate) unsafe fn put<T>(place: *mut T, result: Result<T>) -> hv_return_t {
    code(result.and_then(|value| {
        if place.is_null() {
            return Err(hv_error_t::HV_BAD_ARGUMENT);
        }
        // SAFETY: the caller's promise.
        unsafe { place.write(value) };
        Ok(())
    }))
}

/// Reports what failed, which the framework's result does not say.
pub(crate) fn failed(error: hv_error_t, what: &str) -> hv_error_t {
    eprintln!("Hypervisor.framework's double: {what}");
    error
}

/// The framework's error for KVM's error of `call`.
pub(crate) fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> hv_error_t {
    move |error| {
        let source = io::Error::from_raw_os_error(error.errno());
        failed(of_errno(error.errno()), &format!("{call}: {source}"))
    }
}

/// The framework's error for an error number.
pub(crate) fn of_errno(errno: i32) -> hv_error_t {
    match errno {
        libc::EINVAL => hv_error_t::HV_BAD_ARGUMENT,
        libc::ENOENT | libc::ENXIO | libc::ENODEV => hv_error_t::HV_UNSUPPORTED,
        libc::EBUSY => hv_error_t::HV_BUSY,
        libc::ENOMEM => hv_error_t::HV_NO_RESOURCES,
        libc::EPERM | libc::EACCES => hv_error_t::HV_DENIED,
        _ => hv_error_t::HV_ERROR,
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Repeats a call that KVM refuses while a vCPU is in a system call. One that runs its guest makes it fail.
pub(crate) fn retry_busy<T>(
    mut call: impl FnMut() -> std::result::Result<T, kvm_ioctls::Error>,
) -> std::result::Result<T, kvm_ioctls::Error> {
    let start = Instant::now();
    loop {
        match call() {
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) if e.errno() == libc::EBUSY && start.elapsed() < BUSY_LIMIT => {
                std::thread::yield_now();
            }
            result => return result,
        }
    }
}

/// Enters the guest. An error of EINTR is a signal or `immediate_exit`.
pub(crate) fn enter(vcpu: &VcpuFd) -> std::result::Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM writes to the vCPU's own page, which is mapped, and to guest memory.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), RUN, 0) } {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

/// Sets the difference of the host's counters and the guest's, for all vCPUs.
pub(crate) fn set_counter_offset(
    vm: &VmFd,
    offset: u64,
) -> std::result::Result<(), kvm_ioctls::Error> {
    let offset = kvm_arm_counter_offset { counter_offset: offset, reserved: 0 };
    // SAFETY: KVM reads the structure during the call.
    match unsafe { libc::ioctl(vm.as_raw_fd(), SET_COUNTER_OFFSET, &raw const offset) } {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

/// The signal that ends KVM_RUN.
pub(crate) fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Gives the signal a handler that does nothing: without one it would end the process, with SA_RESTART it would not end
/// the system call.
pub(crate) fn install_kick_handler() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // SAFETY: `action` is initialized and its handler does nothing that a handler may not.
    match unsafe { libc::sigaction(kick_signal(), &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(failed(hv_error_t::HV_ERROR, "sigaction failed")),
    }
}
