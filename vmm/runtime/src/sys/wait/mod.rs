//! Notifications of processes and files, which each operating system has its own interface for.

#[cfg(not(target_os = "linux"))]
mod kqueue;
#[cfg(target_os = "linux")]
mod linux;

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[cfg(not(target_os = "linux"))]
pub(crate) use kqueue::{Changes, ProcessEnd, Watched};
#[cfg(target_os = "linux")]
pub(crate) use linux::{Changes, ProcessEnd, Watched};

/// Registers a descriptor for reading with the async runtime.
#[allow(unsafe_code)]
fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is open and stays so, since nothing but the AsyncFd owns it, and an
    // OwnedFd always gives the same one.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(io::Error::from)
}

fn no_process() -> io::Error {
    io::ErrorKind::NotFound.into()
}
