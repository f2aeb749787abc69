//! A VM with one page of memory and short programs, without the crate under test: on the framework's C functions.

use std::ffi::c_void;
use std::io;
use std::ptr;

use applevisor_sys::*;
use boxlite_hv::gic;

/// GPA of the page.
pub(crate) const BASE: u64 = 0x8000_0000;
const PAGE: usize = PAGE_SIZE;

pub(crate) type Result<T> = std::result::Result<T, String>;

/// The result of a call of the framework.
pub(crate) fn check(call: &str, code: hv_return_t) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(format!("{call} returned {:#x}", code.cast_unsigned())),
    }
}

/// An exit, with the reason as a number.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    pub(crate) reason: u32,
    pub(crate) syndrome: u64,
    pub(crate) virtual_address: u64,
    pub(crate) physical_address: u64,
}

impl Exit {
    /// The exception class, if an exception is the reason.
    pub(crate) fn class(&self) -> Option<u64> {
        (self.reason == 1).then_some(self.syndrome >> 26 & 0x3f)
    }
}

/// The process's VM, with an interrupt controller and a page of shared anonymous memory.
pub(crate) struct Machine {
    page: *mut u32,
}

impl Machine {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: a new mapping at any address.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANON,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(format!("mmap: {}", io::Error::last_os_error()));
        }
        // SAFETY: null stands for the default configuration.
        check("hv_vm_create", unsafe { hv_vm_create(ptr::null_mut()) })?;
        let machine = Self { page: page.cast() };
        create_gic()?;
        machine.map(BASE)?;
        Ok(machine)
    }

    /// Maps the page at this GPA, too.
    pub(crate) fn map(&self, gpa: u64) -> Result<()> {
        let flags = HV_MEMORY_READ | HV_MEMORY_WRITE | HV_MEMORY_EXEC;
        // SAFETY: the page stays mapped until the VM is destroyed.
        check("hv_vm_map", unsafe { hv_vm_map(self.page.cast(), gpa, PAGE, flags) })
    }

    /// Writes a program to the start of the page, as a kernel is loaded: without any cache maintenance.
    pub(crate) fn load(&self, program: &[u32]) {
        for (at, &word) in program.iter().take(PAGE / 4).enumerate() {
            // SAFETY: within the page; volatile, as a guest may read it.
            unsafe { self.page.add(at).write_volatile(word) };
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: the vCPUs are gone, and the page is unmapped after the VM.
        let code = unsafe { hv_vm_destroy() };
        if code == 0 {
            // SAFETY: the mapping is this machine's own, and its last use.
            unsafe { libc::munmap(self.page.cast(), PAGE) };
        }
    }
}

fn create_gic() -> Result<()> {
    // SAFETY: no requirements.
    let config = unsafe { hv_gic_config_create() };
    // SAFETY: `config` is alive until it is released below.
    let result = unsafe {
        check(
            "hv_gic_config_set_distributor_base",
            hv_gic_config_set_distributor_base(config, gic::DISTRIBUTOR),
        )
        .and_then(|()| {
            check(
                "hv_gic_config_set_redistributor_base",
                hv_gic_config_set_redistributor_base(config, gic::REDISTRIBUTORS),
            )
        })
        .and_then(|()| check("hv_gic_create", hv_gic_create(config)))
    };
    // SAFETY: its last use.
    unsafe { os_release(config) };
    result
}

/// A vCPU on its thread.
pub(crate) struct Cpu {
    pub(crate) id: u64,
    exit: *const Exit,
}

impl Cpu {
    /// Creates a vCPU with an affinity, at the start of the page.
    pub(crate) fn new(affinity: u64) -> Result<Self> {
        let cpu = Self::as_created()?;
        cpu.set_system(hv_sys_reg_t::MPIDR_EL1, affinity)?;
        cpu.restart()?;
        Ok(cpu)
    }

    /// Creates a vCPU, and leaves its registers alone.
    pub(crate) fn as_created() -> Result<Self> {
        let (mut id, mut exit) = (0, ptr::null());
        // SAFETY: the pointers are valid for the call; null stands for the default configuration.
        check("hv_vcpu_create", unsafe { hv_vcpu_create(&mut id, &mut exit, ptr::null_mut()) })?;
        Ok(Self { id, exit: exit.cast() })
    }

    /// Sets the registers for the program at the start of the page.
    pub(crate) fn restart(&self) -> Result<()> {
        self.set(hv_reg_t::PC, BASE)?;
        self.set(hv_reg_t::CPSR, 0x3c5)
    }

    pub(crate) fn run(&self) -> Result<Exit> {
        // SAFETY: the vCPU exists.
        check("hv_vcpu_run", unsafe { hv_vcpu_run(self.id) })?;
        // SAFETY: the record lives as long as the vCPU, and is plain numbers.
        Ok(unsafe { self.exit.read() })
    }

    /// Runs to the next HVC, and returns X0.
    pub(crate) fn answer(&self) -> Result<u64> {
        let exit = self.run()?;
        match exit.class() {
            Some(0x16) => self.get(hv_reg_t::X0),
            _ => Err(format!("expected HVC, got {exit:x?}")),
        }
    }

    pub(crate) fn get(&self, reg: hv_reg_t) -> Result<u64> {
        let mut value = 0;
        // SAFETY: the pointer is valid for the call.
        check("hv_vcpu_get_reg", unsafe { hv_vcpu_get_reg(self.id, reg, &mut value) })?;
        Ok(value)
    }

    pub(crate) fn set(&self, reg: hv_reg_t, value: u64) -> Result<()> {
        // SAFETY: no memory is involved.
        check("hv_vcpu_set_reg", unsafe { hv_vcpu_set_reg(self.id, reg, value) })
    }

    pub(crate) fn system(&self, reg: hv_sys_reg_t) -> Result<u64> {
        let mut value = 0;
        // SAFETY: the pointer is valid for the call.
        check("hv_vcpu_get_sys_reg", unsafe { hv_vcpu_get_sys_reg(self.id, reg, &mut value) })?;
        Ok(value)
    }

    pub(crate) fn set_system(&self, reg: hv_sys_reg_t, value: u64) -> Result<()> {
        // SAFETY: no memory is involved.
        check("hv_vcpu_set_sys_reg", unsafe { hv_vcpu_set_sys_reg(self.id, reg, value) })
    }

    /// GPA of the redistributor and its TYPER.
    pub(crate) fn redistributor(&self) -> Result<(u64, u64)> {
        let (mut base, mut typer) = (0, 0);
        // SAFETY: the pointers are valid for the calls.
        unsafe {
            check(
                "hv_gic_get_redistributor_base",
                hv_gic_get_redistributor_base(self.id, &mut base),
            )?;
            let reg = hv_gic_redistributor_reg_t::TYPER;
            check(
                "hv_gic_get_redistributor_reg",
                hv_gic_get_redistributor_reg(self.id, reg, &mut typer),
            )?;
        }
        Ok((base, typer))
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        // SAFETY: the vCPU exists, and this is its last use.
        unsafe { hv_vcpu_destroy(self.id) };
    }
}

/// Raises an SPI.
pub(crate) fn set_spi(intid: u32) -> Result<()> {
    // SAFETY: no memory is involved.
    check("hv_gic_set_spi", unsafe { hv_gic_set_spi(intid, true) })
}

/// GICD_ISPENDR1: the pending bits of INTIDs 32 to 63.
pub(crate) fn pending() -> Result<u64> {
    let mut value = 0;
    let reg = hv_gic_distributor_reg_t::ISPENDR1;
    // SAFETY: the pointer is valid for the call.
    check("hv_gic_get_distributor_reg", unsafe { hv_gic_get_distributor_reg(reg, &mut value) })?;
    Ok(value)
}

/// The state of the interrupt controller.
pub(crate) fn gic_state() -> Result<Vec<u8>> {
    // SAFETY: no requirements.
    let state = unsafe { hv_gic_state_create() };
    if state.is_null() {
        return Err("hv_gic_state_create returned null".into());
    }
    let mut size = 0;
    // SAFETY: the object is alive until it is released, and the buffer has the size that it asks for.
    unsafe {
        let mut result = check("hv_gic_state_get_size", hv_gic_state_get_size(state, &mut size));
        let mut data = vec![0u8; size];
        result = result.and_then(|()| {
            let buffer = data.as_mut_ptr().cast::<c_void>();
            check("hv_gic_state_get_data", hv_gic_state_get_data(state, buffer))
        });
        os_release(state);
        result.map(|()| data)
    }
}

/// Loads a state of the interrupt controller.
pub(crate) fn set_gic_state(data: &[u8]) -> Result<()> {
    // SAFETY: the pointer and the size are the slice's.
    check("hv_gic_set_state", unsafe { hv_gic_set_state(data.as_ptr().cast(), data.len()) })
}

/// Makes a vCPU leave the guest after `time`.
pub(crate) fn exit_after(vcpu: u64, time: std::time::Duration) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        std::thread::sleep(time);
        // SAFETY: the array has one element, and the caller joins this thread before it destroys the vCPU.
        unsafe { hv_vcpus_exit(&vcpu, 1) };
    })
}
