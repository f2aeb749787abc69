//! Operations that differ between operating systems, or have no safe interface.

pub(crate) mod kvm;
mod mac;
mod signal;
mod socket;
mod spawn;
mod wait;

pub(crate) use mac::mac;
pub(crate) use signal::{is_ignored, native};
pub(crate) use socket::{inherited_listener, socket_path};
pub(crate) use spawn::{in_new_session, inherit_only};
pub(crate) use wait::{Changes, ProcessEnd, Watched};
