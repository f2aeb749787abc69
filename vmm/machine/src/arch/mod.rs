//! The VM as a guest kernel finds it, per architecture: the address map, and the tables that firmware would have
//! written to memory.
//!
//! Each architecture has [`layout`], its addresses, and [`load`], which fills memory and returns the entry point of
//! the boot vCPU.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{layout, load};

use std::path::{Path, PathBuf};

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
}
