//! The machine: where a spec becomes a running VM. Only this room knows everything: the hypervisor,
//! the address map, the devices and the agent's boot report.
//!
//! ```text
//!   launcher ──LaunchSpec, files──▶ process.rs (`boxlite-vmm machine`, one per box)
//!   control socket ──server.rs──▶      │ spec.rs       what to build
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

mod boot_report;
mod bounded_log;
mod build;
mod console;
pub(crate) mod control;
mod disks;
mod hub;
mod journal;
mod lifecycle;
mod memory;
mod network;
mod process;
mod record;
mod server;
mod spec;
pub(crate) mod status;
mod sys;
mod threads;
mod vcpu;

pub(crate) use bounded_log::BoundedLog;
pub use control::{BootStage, DiskMetrics, ExitCounts, MachineMetrics, NetworkMetrics};
pub(crate) use process::STOP_LIMIT;
pub use process::main;
pub(crate) use record::GONE;
pub(crate) use spec::{
    BoxSpec, DiskFormat, DiskSpec, HealthSpec, LaunchSpec, MainSpec, NetworkSpec,
};
pub use spec::{MEMORY_MIB, Port, Protocol, RestartPolicy, VCPUS};
pub use status::{Health, HealthStatus};
