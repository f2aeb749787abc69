//! The counters of a VM process.

use serde::{Deserialize, Serialize};

/// The counters of a VM process, from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MachineMetrics {
    /// Processor time of the process, in microseconds.
    pub cpu_micros: u64,
    /// Time since the process started, in microseconds.
    #[serde(default)]
    pub up_micros: u64,
    /// Resident memory of the process, in bytes, with the guest memory that was touched.
    pub rss: u64,
    /// vCPU exits by kind.
    pub exits: VmExitCounts,
    /// Disk counters, in the order of the devices.
    pub disks: Vec<DiskMetrics>,
    /// Network counters, if the box has a network.
    #[serde(default)]
    pub network: Option<NetworkMetrics>,
}

impl MachineMetrics {
    /// Processor time used since an `earlier` reading of the same process, in percent of one processor.
    pub fn cpu_percent_since(&self, earlier: &Self) -> Option<f64> {
        let used = self.cpu_micros.checked_sub(earlier.cpu_micros)?;
        let passed = self.up_micros.checked_sub(earlier.up_micros).filter(|passed| *passed > 0)?;
        Some(used as f64 * 100.0 / passed as f64)
    }
}

/// vCPU exits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VmExitCounts {
    /// Reads and writes of memory-mapped registers.
    pub mmio: u64,
    /// Reads and writes of I/O ports.
    pub pio: u64,
    /// All other exits.
    pub other: u64,
}

/// The counters of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DiskMetrics {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Flushes.
    pub flushes: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// The counters of a box's network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkMetrics {
    /// Bytes that the guest sent, in Ethernet frames.
    pub bytes_sent: u64,
    /// Frames that the guest sent; with segmentation offload, one frame may hold many segments.
    pub packets_sent: u64,
    /// Bytes that the guest received, in Ethernet frames.
    pub bytes_received: u64,
    /// Frames that the guest received.
    pub packets_received: u64,
    /// Frames and datagrams that were dropped, because they were malformed or a queue was full.
    pub dropped: u64,
    /// TCP segments that were retransmitted to the guest.
    pub retransmits: u64,
    /// TCP segments from the guest that arrived out of order.
    pub out_of_order: u64,
    /// TCP connections so far.
    pub tcp_flows: u64,
    /// TCP connections now.
    pub tcp_open: u64,
    /// UDP flows so far.
    pub udp_flows: u64,
    /// UDP flows now.
    pub udp_open: u64,
    /// Flows and names that the policy denied.
    pub denied: u64,
    /// DNS queries of the guest.
    pub dns_queries: u64,
    /// DNS queries that no name server answered.
    pub dns_failures: u64,
}

impl std::ops::Add for VmExitCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            mmio: self.mmio + other.mmio,
            pio: self.pio + other.pio,
            other: self.other + other.other,
        }
    }
}

impl std::iter::Sum for VmExitCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), std::ops::Add::add)
    }
}

impl std::ops::Add for DiskMetrics {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            bytes_read: self.bytes_read + other.bytes_read,
            writes: self.writes + other.writes,
            bytes_written: self.bytes_written + other.bytes_written,
            flushes: self.flushes + other.flushes,
            errors: self.errors + other.errors,
        }
    }
}
