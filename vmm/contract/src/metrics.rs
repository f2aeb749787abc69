//! What a box's process counts.

use serde::{Deserialize, Serialize};

/// What a box's process counts, from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MachineMetrics {
    /// Processor time of the process, in microseconds.
    pub cpu_micros: u64,
    /// How long the process has been there, in microseconds.
    #[serde(default)]
    pub up_micros: u64,
    /// Resident memory of the process, guest memory that was touched included, in bytes.
    pub rss: u64,
    /// Exits of the vCPUs to the machine, by their kind.
    pub exits: ExitCounts,
    /// Disks, in the order of their devices.
    pub disks: Vec<DiskMetrics>,
    /// The network, if the box has one.
    #[serde(default)]
    pub network: Option<NetworkMetrics>,
}

impl MachineMetrics {
    /// Processor time used since an `earlier` look at the same process, in percent of one processor.
    pub fn cpu_percent_since(&self, earlier: &Self) -> Option<f64> {
        let used = self.cpu_micros.checked_sub(earlier.cpu_micros)?;
        let passed = self.up_micros.checked_sub(earlier.up_micros).filter(|passed| *passed > 0)?;
        Some(used as f64 * 100.0 / passed as f64)
    }
}

/// Exits of the vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExitCounts {
    /// Reads and writes of device registers in memory.
    pub mmio: u64,
    /// Reads and writes of ports.
    pub pio: u64,
    /// Everything else.
    pub other: u64,
}

/// What a disk did.
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

/// What a box's network did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkMetrics {
    /// Bytes that the guest sent, in Ethernet frames.
    pub bytes_sent: u64,
    /// Those frames; with segmentation offload, one may hold what takes many elsewhere.
    pub packets_sent: u64,
    /// Bytes that the guest received.
    pub bytes_received: u64,
    /// The frames that they came in.
    pub packets_received: u64,
    /// Frames and datagrams that were dropped: malformed, or something was full.
    pub dropped: u64,
    /// TCP segments sent to the guest again.
    pub retransmits: u64,
    /// TCP segments of the guest that came out of order.
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
    /// DNS questions of the guest.
    pub dns_queries: u64,
    /// DNS questions that no name server answered.
    pub dns_failures: u64,
}

impl std::ops::Add for ExitCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            mmio: self.mmio + other.mmio,
            pio: self.pio + other.pio,
            other: self.other + other.other,
        }
    }
}

impl std::iter::Sum for ExitCounts {
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
