//! A test of KVM with two calls of its interface (Linux kernel, Documentation/virt/kvm/api.rst), so that embedders of
//! the runtime do not compile the backend.

use std::fs::File;
use std::io;

/// Creates an empty VM with an open `/dev/kvm`, and drops it.
///
/// # Errors
/// A message that says what does not work.
#[cfg(target_os = "linux")]
pub(crate) fn create_vm(device: &File) -> Result<(), String> {
    /// The only version there has been since 2007.
    const API_VERSION: i32 = 12;
    match version(device).map_err(|e| format!("cannot get its version: {e}"))? {
        API_VERSION => {}
        other => return Err(format!("its version is {other}, not {API_VERSION}")),
    }
    vm(device).map_err(|e| format!("cannot create a virtual machine: {e}"))
}

/// Only Linux has KVM.
#[cfg(not(target_os = "linux"))]
pub(crate) fn create_vm(_: &File) -> Result<(), String> {
    Err(io::Error::from(io::ErrorKind::Unsupported).to_string())
}

/// `KVM_GET_API_VERSION`, `_IO(0xAE, 0x00)`.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn version(device: &File) -> io::Result<i32> {
    use std::os::fd::AsRawFd;
    const KVM_GET_API_VERSION: libc::Ioctl = 0xae00;
    // SAFETY: the descriptor is open, and the call takes no pointer.
    match unsafe { libc::ioctl(device.as_raw_fd(), KVM_GET_API_VERSION, 0) } {
        -1 => Err(io::Error::last_os_error()),
        version => Ok(version),
    }
}

/// The argument of `KVM_CREATE_VM`: on aarch64, the size of the guest's physical addresses in bits. Some CPUs have fewer
/// than the 40 bits of the default, and all have this smallest size.
#[cfg(target_os = "linux")]
const VM_TYPE: libc::c_ulong = if cfg!(target_arch = "aarch64") { 32 } else { 0 };

/// `KVM_CREATE_VM`, `_IO(0xAE, 0x01)`.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn vm(device: &File) -> io::Result<()> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    const KVM_CREATE_VM: libc::Ioctl = 0xae01;
    let vm = loop {
        // SAFETY: the descriptor is open, and the call takes no pointer.
        match unsafe { libc::ioctl(device.as_raw_fd(), KVM_CREATE_VM, VM_TYPE) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(io::Error::last_os_error()),
            vm => break vm,
        }
    };
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(vm) });
    Ok(())
}
