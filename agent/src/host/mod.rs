//! Communication with the host: the transport, the listener, and the connections.
//!
//! ```text
//!  transport       vsock, or a virtio-serial port; reports the boot
//!    └─ listener       accepts connections, from the host only
//!         └─ connection    a descriptor and its session, bounded in both directions
//! ```
//!
//! May use `sys` and the protocol's sessions. Requests are handled by `server`.

pub(crate) mod connection;
pub(crate) mod listener;
pub(crate) mod transport;
