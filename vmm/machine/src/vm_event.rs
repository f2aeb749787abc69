//! Events that the threads of a VM send to the main thread.

use std::sync::Arc;

use crate::boot_report::Report;

/// An event of a running VM.
#[derive(Debug)]
pub(crate) enum VmEvent {
    /// The VM is to be stopped.
    Stop(VmStop),
    /// A boot report of the agent.
    Report(Report),
    /// The host has no space left for the guest's writes to this disk.
    DiskFull(String),
}

/// Why a VM stops.
#[derive(Clone, Debug)]
pub(crate) enum VmStop {
    /// The guest powered itself off or reset itself.
    Guest,
    /// A vCPU or a thread of the VM cannot go on.
    Failed(String),
}

/// Receives the events of a VM, on any of its threads.
pub(crate) type EventSink = Arc<dyn Fn(VmEvent) + Send + Sync>;
