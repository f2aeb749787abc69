//! Micro-VM boxes: the machine, the box runtime API and the `boxlite-vmm` launcher.

#![deny(unsafe_code)]

pub mod client;
pub mod softhost;
