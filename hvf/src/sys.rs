//! Calls of Hypervisor.framework and the host's counter: all unsafe code of this crate, besides the mapping of memory.
//!
//! The `applevisor` crate serves the configuration and the life of the VM. Its vCPU hides the exit record and reads it
//! as Rust enums, which an exit of a later macOS would make undefined behaviour; its destructor panics; and it passes
//! vectors as integers. So vCPUs are made of `applevisor-sys` here.
//!
//! On other systems than macOS the framework's functions come from elsewhere: in unit tests from a scripted framework.

#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::ptr;

use applevisor::error::HypervisorError;
use applevisor_sys as hv;
use boxlite_hv::{Error, Perms, Result};

/// The framework's error of `call`.
pub(crate) fn failed(call: &'static str) -> impl FnOnce(HypervisorError) -> Error {
    move |error| Error::Call { call, source: io::Error::other(error) }
}

/// `None` if the framework does not have what was asked for.
pub(crate) fn if_supported<T>(result: Result<T>) -> Result<Option<T>> {
    use HypervisorError::{BadArgument, Unsupported};
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Call { source, .. })
            if matches!(cause(&source), Some(BadArgument | Unsupported)) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// The framework's error in the one that [`failed`] made.
fn cause(source: &io::Error) -> Option<&HypervisorError> {
    source.get_ref()?.downcast_ref()
}

fn check(call: &'static str, code: hv::hv_return_t) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(failed(call)(HypervisorError::from(code))),
    }
}

/// Maps guest memory.
///
/// # Safety
///
/// As [`Vm::map`](boxlite_hv::Vm::map).
pub(crate) unsafe fn map(host: *mut u8, gpa: u64, len: usize, perms: Perms) -> Result<()> {
    let flags = match perms {
        Perms::ReadExecute => hv::HV_MEMORY_READ | hv::HV_MEMORY_EXEC,
        Perms::ReadWriteExecute => hv::HV_MEMORY_READ | hv::HV_MEMORY_WRITE | hv::HV_MEMORY_EXEC,
    };
    // SAFETY: the caller promises that the memory stays mapped until `unmap` or the end of the VM.
    check("hv_vm_map", unsafe { hv::hv_vm_map(host.cast(), gpa, len, flags) })
}

/// Unmaps guest memory.
pub(crate) fn unmap(gpa: u64, len: usize) -> Result<()> {
    // SAFETY: takes memory away from the guest only.
    check("hv_vm_unmap", unsafe { hv::hv_vm_unmap(gpa, len) })
}

/// The greatest number of vCPUs of a VM.
pub(crate) fn max_vcpus() -> Result<u32> {
    let mut count = 0;
    // SAFETY: the pointer is valid for the call.
    check("hv_vm_get_max_vcpu_count", unsafe { hv::hv_vm_get_max_vcpu_count(&mut count) })?;
    Ok(count)
}

/// Makes a vCPU leave the guest, now or at its next entry. It must not be destroyed meanwhile.
pub(crate) fn exit(vcpu: u64) -> Result<()> {
    // SAFETY: the array has one element.
    check("hv_vcpus_exit", unsafe { hv::hv_vcpus_exit(&vcpu, 1) })
}

/// Sets the level of a shared peripheral interrupt: high is an edge, too.
pub(crate) fn set_spi(intid: u32) -> Result<()> {
    // SAFETY: no memory is involved.
    check("hv_gic_set_spi", unsafe { hv::hv_gic_set_spi(intid, true) })
}

/// The state of the interrupt controller, without its CPU interfaces. The VM's vCPUs are outside the guest.
pub(crate) fn gic_state() -> Result<Vec<u8>> {
    struct State(hv::hv_gic_state_t);
    impl Drop for State {
        fn drop(&mut self) {
            // SAFETY: the object was created below, is not null, and has no other owner.
            unsafe { hv::os_release(self.0) }
        }
    }
    // SAFETY: no requirements; null without an interrupt controller.
    let state = unsafe { hv::hv_gic_state_create() };
    if state.is_null() {
        return Err(failed("hv_gic_state_create")(HypervisorError::Error));
    }
    let state = State(state);
    let mut size = 0;
    // SAFETY: the object is alive, and the pointer is valid for the call.
    check("hv_gic_state_get_size", unsafe { hv::hv_gic_state_get_size(state.0, &mut size) })?;
    let mut data = vec![0; size];
    // SAFETY: the object is alive, and the buffer has the size that it asks for.
    check("hv_gic_state_get_data", unsafe {
        hv::hv_gic_state_get_data(state.0, data.as_mut_ptr().cast())
    })?;
    Ok(data)
}

/// Loads a state of the interrupt controller. All vCPUs exist, and none has run.
pub(crate) fn set_gic_state(data: &[u8]) -> Result<()> {
    // SAFETY: the pointer and the size are the slice's. The framework checks the content.
    check("hv_gic_set_state", unsafe { hv::hv_gic_set_state(data.as_ptr().cast(), data.len()) })
}

/// Why a vCPU left the guest: the framework's `hv_vcpu_exit_t`, with the reason as a number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawExit {
    /// `hv_exit_reason_t`.
    pub(crate) reason: u32,
    /// ESR_EL2.
    pub(crate) syndrome: u64,
    /// FAR_EL2.
    pub(crate) virtual_address: u64,
    /// The faulting guest-physical address.
    pub(crate) physical_address: u64,
}

const _: () = assert!(size_of::<RawExit>() == size_of::<hv::hv_vcpu_exit_t>());

/// Reasons of exits.
pub(crate) mod reason {
    /// `hv_vcpus_exit` was called.
    pub(crate) const CANCELED: u32 = 0;
    /// The guest did something: see the syndrome.
    pub(crate) const EXCEPTION: u32 = 1;
    /// The virtual timer fired, and is masked now.
    pub(crate) const VTIMER: u32 = 2;
}

/// A vCPU of the framework, on the thread that created it. The framework refuses calls from other threads.
#[derive(Debug)]
pub(crate) struct Cpu {
    id: hv::hv_vcpu_t,
    exit: *const RawExit,
    /// Not to be sent to another thread.
    _thread: PhantomData<*const ()>,
}

impl Cpu {
    /// Creates the next vCPU of this process's VM.
    pub(crate) fn create() -> Result<Self> {
        let (mut id, mut exit) = (0, ptr::null());
        // SAFETY: the pointers are valid for the call; null stands for the default configuration.
        check("hv_vcpu_create", unsafe {
            hv::hv_vcpu_create(&mut id, &mut exit, ptr::null_mut())
        })?;
        Ok(Self { id, exit: exit.cast(), _thread: PhantomData })
    }

    /// The framework's name of this vCPU, for [`exit`].
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Enters the guest until the next exit.
    pub(crate) fn run(&mut self) -> Result<RawExit> {
        // SAFETY: the vCPU exists.
        check("hv_vcpu_run", unsafe { hv::hv_vcpu_run(self.id) })?;
        // SAFETY: the record lives as long as the vCPU, has this layout and is plain numbers. The framework writes it
        // during `hv_vcpu_run` only, which this thread calls.
        Ok(unsafe { self.exit.read() })
    }

    /// A general register, PC, PSTATE, FPCR or FPSR.
    pub(crate) fn get(&self, reg: hv::hv_reg_t) -> Result<u64> {
        let mut value = 0;
        // SAFETY: the pointer is valid for the call.
        check("hv_vcpu_get_reg", unsafe { hv::hv_vcpu_get_reg(self.id, reg, &mut value) })?;
        Ok(value)
    }

    /// Sets a general register, PC, PSTATE, FPCR or FPSR.
    pub(crate) fn set(&self, reg: hv::hv_reg_t, value: u64) -> Result<()> {
        // SAFETY: no memory is involved.
        check("hv_vcpu_set_reg", unsafe { hv::hv_vcpu_set_reg(self.id, reg, value) })
    }

    /// A system register.
    pub(crate) fn get_system(&self, reg: hv::hv_sys_reg_t) -> Result<u64> {
        let mut value = 0;
        // SAFETY: the pointer is valid for the call.
        check("hv_vcpu_get_sys_reg", unsafe { hv::hv_vcpu_get_sys_reg(self.id, reg, &mut value) })?;
        Ok(value)
    }

    /// Sets a system register.
    pub(crate) fn set_system(&self, reg: hv::hv_sys_reg_t, value: u64) -> Result<()> {
        // SAFETY: no memory is involved.
        check("hv_vcpu_set_sys_reg", unsafe { hv::hv_vcpu_set_sys_reg(self.id, reg, value) })
    }

    /// A register of the interrupt controller's CPU interface.
    pub(crate) fn get_icc(&self, reg: hv::hv_gic_icc_reg_t) -> Result<u64> {
        let mut value = 0;
        // SAFETY: the pointer is valid for the call.
        check("hv_gic_get_icc_reg", unsafe { hv::hv_gic_get_icc_reg(self.id, reg, &mut value) })?;
        Ok(value)
    }

    /// Sets a register of the interrupt controller's CPU interface.
    pub(crate) fn set_icc(&self, reg: hv::hv_gic_icc_reg_t, value: u64) -> Result<()> {
        // SAFETY: no memory is involved.
        check("hv_gic_set_icc_reg", unsafe { hv::hv_gic_set_icc_reg(self.id, reg, value) })
    }

    /// GPA of this vCPU's redistributor. The affinity is set.
    pub(crate) fn redistributor(&self) -> Result<u64> {
        let mut base = 0;
        // SAFETY: the pointer is valid for the call.
        check("hv_gic_get_redistributor_base", unsafe {
            hv::hv_gic_get_redistributor_base(self.id, &mut base)
        })?;
        Ok(base)
    }

    /// Makes private interrupts of this vCPU pending, one per bit.
    pub(crate) fn set_pending(&self, interrupts: u32) -> Result<()> {
        let reg = hv::hv_gic_redistributor_reg_t::ISPENDR0;
        // SAFETY: no memory is involved.
        check("hv_gic_set_redistributor_reg", unsafe {
            hv::hv_gic_set_redistributor_reg(self.id, reg, interrupts.into())
        })
    }

    /// Whether the virtual timer is masked: it is after its exit.
    pub(crate) fn set_timer_mask(&self, masked: bool) -> Result<()> {
        // SAFETY: no memory is involved.
        check("hv_vcpu_set_vtimer_mask", unsafe { hv::hv_vcpu_set_vtimer_mask(self.id, masked) })
    }

    /// Whether the virtual timer is masked.
    pub(crate) fn timer_mask(&self) -> Result<bool> {
        let mut masked = false;
        // SAFETY: the pointer is valid for the call.
        check("hv_vcpu_get_vtimer_mask", unsafe {
            hv::hv_vcpu_get_vtimer_mask(self.id, &mut masked)
        })?;
        Ok(masked)
    }

    /// Sets the difference of the host's [`counter()`] and the guest's.
    pub(crate) fn set_timer_offset(&self, offset: u64) -> Result<()> {
        // SAFETY: no memory is involved.
        check("hv_vcpu_set_vtimer_offset", unsafe {
            hv::hv_vcpu_set_vtimer_offset(self.id, offset)
        })
    }

    /// Leaves debug exceptions and debug registers to the guest.
    pub(crate) fn trap_no_debugging(&self) -> Result<()> {
        // SAFETY: no memory is involved.
        check("hv_vcpu_set_trap_debug_exceptions", unsafe {
            hv::hv_vcpu_set_trap_debug_exceptions(self.id, false)
        })?;
        // SAFETY: no memory is involved.
        check("hv_vcpu_set_trap_debug_reg_accesses", unsafe {
            hv::hv_vcpu_set_trap_debug_reg_accesses(self.id, false)
        })
    }

    /// A vector register.
    pub(crate) fn get_vector(&self, reg: hv::hv_simd_fp_reg_t) -> Result<u128> {
        let mut value = 0;
        // SAFETY: the pointer is valid for the call and aligned for a vector.
        check("hv_vcpu_get_simd_fp_reg", unsafe {
            hv::hv_vcpu_get_simd_fp_reg(self.id, reg, &mut value)
        })?;
        Ok(value)
    }

    /// Sets a vector register.
    pub(crate) fn set_vector(&self, reg: hv::hv_simd_fp_reg_t, value: u128) -> Result<()> {
        check("hv_vcpu_set_simd_fp_reg", set_vector(self.id, reg, value))
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        // An error leaves the vCPU behind, and the VM's destruction takes it or fails as well.
        // SAFETY: the vCPU exists, and this is its last use.
        let _ = unsafe { hv::hv_vcpu_destroy(self.id) };
    }
}

/// The framework takes the value in V0. Rust passes no vectors to C functions, and an integer would go to X2 and X3.
#[cfg(target_arch = "aarch64")]
fn set_vector(vcpu: u64, reg: hv::hv_simd_fp_reg_t, value: u128) -> hv::hv_return_t {
    use std::arch::aarch64::vld1q_u8;
    use std::arch::asm;

    let result: u64;
    // SAFETY: a call of a C function with its arguments where the procedure call standard has them: the vCPU in X0, the
    // register in W1, the value in V0. The block declares all registers that a call may change, and keeps the stack
    // aligned, as it does not say `nostack`. The pointer is valid for 16 bytes.
    unsafe {
        let vector = vld1q_u8((&raw const value).cast());
        asm!(
            "bl {set}",
            set = sym hv::hv_vcpu_set_simd_fp_reg,
            inlateout("x0") vcpu => result,
            in("x1") reg as u64,
            in("v0") vector,
            clobber_abi("C"),
        );
    }
    result as hv::hv_return_t
}

/// For the scripted framework of unit tests, which is a Rust function.
#[cfg(not(target_arch = "aarch64"))]
fn set_vector(vcpu: u64, reg: hv::hv_simd_fp_reg_t, value: u128) -> hv::hv_return_t {
    // SAFETY: no memory is involved.
    unsafe { hv::hv_vcpu_set_simd_fp_reg(vcpu, reg, value) }
}

pub(crate) use counter::{counter, frequency};

/// The host's counter, of which the framework subtracts a vCPU's offset, and its ticks per second.
mod counter {
    #[cfg(target_os = "macos")]
    pub(crate) fn counter() -> u64 {
        unsafe extern "C" {
            safe fn mach_absolute_time() -> u64;
        }
        mach_absolute_time()
    }

    #[cfg(all(target_arch = "aarch64", not(target_os = "macos")))]
    pub(crate) fn counter() -> u64 {
        let ticks: u64;
        // SAFETY: reads a counter that Linux lets processes read. The barrier keeps it from being read early.
        unsafe {
            std::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack));
        }
        ticks
    }

    #[cfg(target_arch = "aarch64")]
    pub(crate) fn frequency() -> u64 {
        let frequency: u64;
        // SAFETY: reads a constant that macOS and Linux let processes read.
        unsafe {
            std::arch::asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack));
        }
        frequency
    }

    /// For unit tests: nanoseconds.
    #[cfg(not(target_arch = "aarch64"))]
    pub(crate) fn counter() -> u64 {
        use std::sync::LazyLock;
        use std::time::Instant;

        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed().as_nanos() as u64
    }

    #[cfg(not(target_arch = "aarch64"))]
    pub(crate) fn frequency() -> u64 {
        1_000_000_000
    }
}
