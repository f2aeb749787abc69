//! A home's runtime in the nested host.
//!
//! ```text
//!   this process                             nested host
//!   Runtime ── Serving::Remote ─ the agent's ── boxlite-vmm serve ── Local ── boxes' processes
//!                                streams
//! ```
//!
//! `serve` runs as a command of the nested host's agent, and inherits the socket that it serves from the agent. Each
//! call and each channel is a stream of the agent protocol that the agent connects to this socket. The agent listens
//! before it starts the command, so the first call is on its way while `serve` starts. When the launcher's connection
//! closes, `serve` ends, and with it the boxes that end with their runtime.

mod client;
mod server;
#[cfg(test)]
mod tests;
mod wire;

pub(super) use client::Remote;
pub use server::serve;
