//! How the loop waits for file descriptors: epoll on Linux, kqueue on macOS, both level-triggered.
//!
//! Both halves have one type, `Poller`, with the same methods. A registration has a key, which the caller
//! chooses and never uses twice, so that an event that was pending when its descriptor was removed is recognised.

#[cfg(target_os = "linux")]
mod epoll;
// Its tests run on Linux as well.
#[cfg(any(target_os = "macos", test))]
mod filters;
#[cfg(target_os = "macos")]
mod kqueue;

#[cfg(target_os = "linux")]
pub(super) use epoll::Poller;
#[cfg(target_os = "macos")]
pub(super) use kqueue::Poller;

/// Events taken from the system at once.
const BATCH: usize = 256;

/// The readiness of a registered descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ready {
    /// The key of its registration.
    pub(super) key: u64,
    /// A read does not block.
    pub(super) readable: bool,
    /// A write does not block.
    pub(super) writable: bool,
    /// Both directions are closed.
    pub(super) hang_up: bool,
    /// It has an error, where the system says so before a read or a write does.
    pub(super) error: bool,
}
