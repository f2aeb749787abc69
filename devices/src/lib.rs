//! Device models of a box's machine.
//!
//! Everything in here sees guest memory, an [`Interrupt`] to raise and a [`Doorbell`] to wait on,
//! and nothing else of the machine: no hypervisor is named in this crate. Whatever a guest writes,
//! into a register, a descriptor or a packet, is checked and answered; it never panics the host.

#![deny(unsafe_code)]

mod bus;
mod doorbell;
mod event_loop;
mod interrupt;
pub mod legacy;
mod log_budget;
pub mod virtio;

pub use bus::{Bus, BusDevice, BusError};
pub use doorbell::Doorbell;
pub use event_loop::{Event, EventLoop, Handler, Interest, LoopHandle, Registration, Watch};
pub use interrupt::Interrupt;
pub use log_budget::LogBudget;

/// Guest memory as every device sees it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
