//! A home's runtime in the software host.
//!
//! ```text
//!   this process                             software host
//!   Runtime ── Serving::There ── yamux over ── boxlite-vmm serve ── Local ── boxes' processes
//!                                an exec's stdio
//! ```
//!
//! `serve` runs as a command of the software host's agent, and answers calls and opens channels, a yamux stream
//! each. It ends with the connection, and with it the boxes that end with their runtime.

mod client;
mod mux;
mod server;
mod wire;

pub(super) use client::Remote;
pub use server::serve;
