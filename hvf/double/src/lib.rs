//! The C interface of Hypervisor.framework on KVM: the backend for Apple silicon runs its guests on aarch64 Linux, as
//! it is. For tests only; a program links it by `use boxlite_hvf_double as _;`.
//!
//! ```text
//!   vm.rs            hv_vm_*: the VM, its configuration, the counter
//!    ├── memory.rs   hv_vm_map and so on: memory slots
//!    ├── gic.rs      hv_gic_*: a GICv3 in the kernel, initialized before the first entry
//!    └─ vcpu.rs      hv_vcpu_*: vCPUs, each on the thread that created it
//!         ├── registers.rs    the names of registers; what they hold in a new vCPU
//!         ├── exit.rs         KVM's exits as the framework's
//!         └── oracle.rs       what KVM makes of an access that the VMM answered
//!   instruction.rs   loads and stores: what the processor says of them in a syndrome
//!   stage1.rs        the guest's page tables
//!   sys.rs           results, and system calls that have no wrapper
//! ```
//!
//! KVM decodes and completes accesses to devices itself; the framework leaves both to the VMM. The double makes the
//! syndrome from the instruction, lets the VMM write the registers, then has KVM complete the same access, and compares
//! general register, PC and PSTATE (`oracle`). A difference fails `hv_vcpu_run`.
//!
//! **Architecture Invariant:** what a caller may not do on a Mac fails here: a vCPU used on another thread, mappings
//! that are not aligned to 16 KiB, an entry before the affinity is set. New vCPUs have senseless register values.

#![cfg(all(target_os = "linux", target_arch = "aarch64"))]
#![allow(clippy::missing_safety_doc)]

mod exit;
mod gic;
mod instruction;
mod memory;
pub mod oracle;
mod registers;
mod stage1;
mod sys;
mod vcpu;
mod vm;
