//! The way to the host: finding it, accepting its connections, and the session on each of them.
//!
//! ```text
//!  transport ── vsock, or a virtio-serial port; reports the boot
//!    └── listener ── accepts connections, of the host only
//!          └── connection ── a descriptor, its session, bounds in both directions
//! ```
//!
//! May use `sys` and the protocol's sessions. What requests do is the server's business.

pub(crate) mod connection;
pub(crate) mod listener;
pub(crate) mod transport;
