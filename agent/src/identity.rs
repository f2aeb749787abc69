//! The machine's name in the kernel; `etc` has the files that programs look it up in.

/// Names the machine.
pub(crate) fn name(hostname: &str) {
    if let Err(e) = rustix::system::sethostname(hostname.as_bytes()) {
        crate::log::warn(format_args!("cannot set the host name {hostname:?}: {e}"));
    }
}
