//! The VM process of a box: turns a [`LaunchSpec`](boxlite_contract::spec::LaunchSpec) into a running VM. Only this
//! crate knows the hypervisor, the address map, the devices and the agent's boot report together.
//!
//! ```text
//!   launcher ──LaunchSpec, files──▶ process.rs (`boxlite-vmm machine`, one per box)
//!   control socket ──server.rs──▶      │
//!            ◀──answers, stages──      │ lifecycle/    decides what happens next
//!                                      │ network/      the box's network, across its boots
//!                                      ▼ build.rs      memory, boot files, vCPUs; board.rs: devices
//!   peers, main.log ◀──hub/──▶ agent  RunningVm ── vcpu.rs  a thread per vCPU
//!   status.json ◀──record.rs           ├─ memory.rs      guest memory
//!   events ◀──journal.rs               ├─ console.rs     the guest's serial console
//!                                      └─ boot_report.rs the agent's reports during the boot
//! ```
//!
//! The process has no async runtime. Its threads are the vCPUs, one device event loop, a worker per disk, and for a
//! box the hub of its main command and threads that serve its sockets and signals. All of them send messages to
//! the main thread, which carries out the lifecycle's actions. threads.rs starts every thread and reports its
//! panic, which is a failure of the box.

#![deny(unsafe_code)]

mod arch;
mod backend;
mod board;
mod boot_report;
mod bounded_log;
mod build;
mod cmdline;
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
