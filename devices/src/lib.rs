//! Device models of a box's VM.
//!
//! A device sees guest memory, an [`Interrupt`](boxlite_hv::Interrupt) to raise and a
//! [`Doorbell`](boxlite_hv::Doorbell) to wait for, and nothing else of the VM: this crate names no
//! hypervisor. Everything that a guest writes, to a register, a descriptor or a packet, is checked;
//! it never panics the host.

#![deny(unsafe_code)]

mod bus;
mod event_loop;
pub mod legacy;
mod log_budget;
pub mod virtio;

pub use bus::{Bus, BusDevice, BusError};
pub use event_loop::{Event, EventLoop, Handler, Interest, LoopHandle, Registration, Watch};
pub use log_budget::LogBudget;

/// Guest memory as every device sees it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
