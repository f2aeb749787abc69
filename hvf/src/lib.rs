//! The Hypervisor.framework backend, for Apple silicon.
//!
//! ```text
//!   decode     the syndrome of an exit ──► what the guest did
//!   exception  a fault ──► the registers of a guest that takes it
//!   sysreg     a trapped system register ──► its value; the ID registers that a guest sees
//!   psci       a firmware call ──► its answer, over all vCPUs
//!   timer      how long a waiting vCPU waits; the counter over a pause
//!   layout     what the framework demands of addresses
//! ```
//!
//! These modules are pure: they know neither the framework nor the host, and are tested on every one.

#![deny(unsafe_code)]

pub mod decode;
pub mod exception;
pub mod layout;
pub mod psci;
pub mod sysreg;
pub mod timer;
