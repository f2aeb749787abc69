//! The board: the VM as a guest kernel finds it, per architecture.
//!
//! Each architecture has the same names:
//! - `layout`: the address map, the lines and the limits;
//! - `legacy`: the devices that are no virtio devices;
//! - `cmdline`: the architecture's words of the kernel command line;
//! - `load`: fills memory with the kernel, the initramfs and the tables that firmware would have written, and returns
//!   the entry point of the boot vCPU.
//!
//! **Architecture Invariant:** in this crate, conditions on the CPU appear only in this file.

// Its tests need no arm64 machine.
#[cfg(any(target_arch = "aarch64", test))]
mod aarch64;
mod files;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::io::Write;
use std::path::{Path, PathBuf};

use boxlite_devices::Bus;
use boxlite_hv::Interrupt;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{cmdline, layout, legacy, load};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{cmdline, layout, legacy, load};

/// The address spaces that devices are in.
#[derive(Debug, Default)]
pub(crate) struct Buses {
    /// Guest-physical memory.
    pub(crate) mmio: Bus,
    /// I/O ports, which only x86 has.
    pub(crate) pio: Bus,
}

/// What the legacy devices are connected to.
pub(crate) struct Wiring<'a> {
    /// The interrupt line of this number.
    pub(crate) irq: &'a dyn Fn(u32) -> boxlite_hv::Result<Interrupt>,
    /// Takes what the guest writes to its console.
    pub(crate) console: Box<dyn Write + Send>,
    /// Called, on a vCPU's thread, when the guest resets the VM by a device.
    pub(crate) reset: Box<dyn Fn() + Send>,
}

/// The registers and the interrupt line of a virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// GPA of the first register.
    pub(crate) start: u64,
    /// The line, as [`boxlite_hv::Vm::irq`] numbers it.
    pub(crate) irq: u32,
}

/// The hardware that differs between boxes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hardware<'a> {
    /// Number of vCPUs.
    pub(crate) vcpus: u8,
    /// The virtio devices.
    pub(crate) devices: &'a [Window],
}

/// What a guest boots from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BootFiles<'a> {
    /// The kernel: `vmlinux` on x86_64, `Image` on aarch64.
    pub(crate) kernel: &'a Path,
    /// The initramfs (newc cpio).
    pub(crate) initramfs: &'a Path,
    /// The kernel command line.
    pub(crate) cmdline: &'a str,
}

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A boot file cannot be read.
    #[error("{path}: {source}; `cargo xtask guest` makes the guest files")]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: std::io::Error,
    },
    /// The kernel file cannot be booted on this architecture.
    #[error("{path} is not a kernel for this machine: {reason}; `cargo xtask guest` makes one")]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Kernel, initramfs and tables do not fit into the box's memory.
    #[error("{what} does not fit into the box's memory: give it more (--memory)")]
    Memory {
        /// What does not fit.
        what: &'static str,
    },
    /// The kernel command line is longer than the kernel takes.
    #[error("the kernel command line has {len} bytes, more than the {max} that the kernel takes")]
    Cmdline {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The kernel would read the command line up to the NUL only.
    #[error("the kernel command line contains a NUL byte")]
    CmdlineNul,
}
