//! The wire protocol between the host and the guest agent.
//!
//! A connection carries many *streams*: an exec, an unpacked layer, a copied tree, a connection to a socket. Stream 0
//! is the connection itself. All bytes are in [frames](frame): a header of nine bytes, and a body of raw bytes (stdio,
//! credit) or of a postcard-encoded [message]. Data flows under [credit] for each stream and channel: a reader that
//! stops reading stops the writer, and nothing is dropped. [`session`] implements all of that for both sides, without
//! I/O.
//!
//! ```text
//!   host                                         agent
//!     ├── Hello ─────────────────────────────────▶ │   once, stream 0
//!     │ ◀─────────────────────────────────── Hello ┤
//!     ├── Request::Exec ─────────────── stream 7 ─▶ │   the host chooses stream numbers
//!     │ ◀──────────────── Response::Started ────────┤
//!     ├── Data(Stdin) … End(Stdin) ──────────────▶ │
//!     │ ◀──────── Data(Stdout), Data(Stderr), End … ┤
//!     ├── Credit(Stdout) ────────────────────────▶ │
//!     │ ◀──────────────── Response::Exited ─────────┤   last frame of the stream
//! ```
//!
//! A format that is in use does not change, because a running box keeps its agent when the host is updated: enums
//! grow only at their end, and golden fixtures in `tests/` pin the bytes.

#![forbid(unsafe_code)]

pub mod archive;
pub mod boot;
pub mod credit;
pub mod frame;
pub mod guest;
pub mod message;
pub mod network;
pub mod session;

/// Version of the protocol that this crate speaks. A peer with another version is refused.
pub const PROTOCOL_VERSION: u16 = 1;

/// The vsock port on which the agent serves.
pub const AGENT_PORT: u32 = 1024;

/// The vsock port of the host (CID 2) to which the agent reports its boot.
pub const BOOT_REPORT_PORT: u32 = 1025;

/// Name of the virtio-serial port that carries the protocol in a guest without vsock (the nested host).
pub const SERIAL_PORT_NAME: &str = "boxlite.agent";
