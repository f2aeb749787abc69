//! The host name in the kernel; `etc` writes the files that programs look it up in.

/// Sets the kernel's host name.
pub(crate) fn set(hostname: &str) {
    if let Err(e) = rustix::system::sethostname(hostname.as_bytes()) {
        crate::log::warn(format_args!("cannot set the host name {hostname:?}: {e}"));
    }
}
