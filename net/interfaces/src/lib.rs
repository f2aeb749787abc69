//! The addresses of this machine's network interfaces.
//!
//! A guest that reaches one of them reaches what listens there, ports of other boxes among it, so the
//! network closes them unless a rule names them. A network that runs in a nested host is told the
//! addresses of the real host by the process that keeps the nested host; so both sides list them here.
//!
//! **Invariant:** no thread and no wait: the kernel answers before the question returns.

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
