//! The process of a box: where a [`LaunchSpec`](boxlite_contract::spec::LaunchSpec) becomes a running VM. Only this
//! crate knows everything: the hypervisor, the address map, the devices and the agent's boot report.
//!
//! ```text
//!   launcher ──LaunchSpec, files──▶ process.rs (`boxlite-vmm machine`, one per box)
//!   control socket ──server.rs──▶      │
//!            ◀──answers, stages──      │ lifecycle/    what is to be done when
//!                                      │ network/      the box's network, through its boots
//!                                      ▼ build.rs      devices, address map, boot files
//!   peers, main.log ◀──hub/──▶ agent  Machine ── vcpu.rs   a thread per vCPU
//!   status.json ◀──record.rs           ├─ memory.rs      guest memory
//!   events ◀──journal.rs               ├─ console.rs     the guest's serial console
//!                                      └─ boot_report.rs what the agent says while it boots
//! ```
//!
//! The process has no async runtime: vCPU threads, one device event loop, a worker per disk; for a
//! box also the hub of its main command, and threads that listen to its sockets and signals. The main
//! thread hears them all, and does what the lifecycle says. Every thread is started and watched by
//! threads.rs: one that panics is the box's failure.

#![deny(unsafe_code)]

mod arch;
mod backend;
mod boot_report;
mod bounded_log;
mod build;
mod console;
mod disks;
mod hub;
mod journal;
mod lifecycle;
mod memory;
mod message;
mod network;
mod process;
mod record;
mod server;
mod sys;
mod threads;
mod vcpu;
mod vm_event;

pub use bounded_log::BoundedLog;
pub use process::main;
