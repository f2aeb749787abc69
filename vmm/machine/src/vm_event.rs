//! What the threads of a VM report to the main thread.

use std::sync::Arc;

use crate::boot_report::Report;

/// Something that a VM reports while it runs.
#[derive(Debug)]
pub(crate) enum VmEvent {
    /// It is to stop.
    Stop(VmStop),
    /// The agent reported something of its boot.
    Report(Report),
    /// The host has no room for what the guest writes to this disk.
    DiskFull(String),
}

/// Why a VM stops.
#[derive(Clone, Debug)]
pub(crate) enum VmStop {
    /// The guest switched itself off or reset itself.
    Guest,
    /// A vCPU or a thread of the VM cannot go on.
    Failed(String),
}

/// Takes the events of a VM, on any of its threads.
pub(crate) type EventSink = Arc<dyn Fn(VmEvent) + Send + Sync>;
