//! The machine: where a spec becomes a running VM. Only this room knows everything: the hypervisor,
//! the address map, the devices and the agent's boot report.
//!
//! ```text
//!   launcher ──LaunchSpec, files──▶ process.rs (`boxlite-vmm machine`, one per box)
//!                                      │ spec.rs     what to build
//!                                      │ memory.rs   guest memory
//!                                      ▼ build.rs    devices, address map, boot files
//!                                   Machine ── vcpu.rs   a thread per vCPU
//!            ◀──events──               ├─ console.rs     the guest's serial console
//!                                      └─ boot_report.rs what the agent says while it boots
//! ```
//!
//! The process has no async runtime: vCPU threads, one device event loop, a worker per disk, and
//! the thread that talks to the launcher.

mod boot_report;
mod build;
mod console;
pub(crate) mod control;
mod hub;
mod lifecycle;
mod memory;
mod process;
mod record;
mod server;
mod spec;
pub(crate) mod status;
mod sys;
mod vcpu;

pub use control::{BootStage, DiskMetrics, ExitCounts, MachineMetrics};
pub use process::main;
pub(crate) use spec::{BoxSpec, DiskFormat, DiskSpec, HealthSpec, LaunchSpec, MainSpec};
pub use spec::{MEMORY_MIB, RestartPolicy, VCPUS};
pub use status::{Health, HealthStatus};
