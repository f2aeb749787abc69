//! The operating system's event behind a doorbell: an eventfd on Linux, a pipe on other systems.

#[cfg(target_os = "linux")]
mod eventfd;
// Its tests run on Linux as well.
#[cfg(any(not(target_os = "linux"), test))]
mod pipe;

#[cfg(target_os = "linux")]
pub(crate) use eventfd::Event;
#[cfg(not(target_os = "linux"))]
pub(crate) use pipe::Event;
