//! The addresses of this machine's network interfaces.
//!
//! A guest that reaches one of them reaches the servers there, including published ports of other boxes, so the
//! network denies them unless a rule names them. In a nested host, a network gets the addresses of the real host
//! from the nested host's keeper, so both processes use this crate.
//!
//! **Invariant:** no thread and no waiting: the kernel answers before a call returns.

#![forbid(unsafe_code)]

use std::io;
use std::net::IpAddr;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

#[cfg(target_os = "linux")]
pub use linux::Interfaces;
#[cfg(not(target_os = "linux"))]
pub use other::Interfaces;

/// The addresses of this machine's interfaces, the loopback's among them.
///
/// # Errors
/// This process may not list them, or this is not Linux.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    Ok(Interfaces::new()?.addresses().collect())
}
