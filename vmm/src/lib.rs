//! Micro-VM boxes: the machine, the box runtime API and the `boxlite-vmm` launcher.

#![deny(unsafe_code)]

pub mod client;
#[cfg(target_os = "linux")]
mod kvm;
pub mod softhost;
