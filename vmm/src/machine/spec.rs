//! What a machine is to be: the LaunchSpec, which the launcher hands over with open files.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// vCPUs that a box may have.
pub const VCPUS: RangeInclusive<u8> = 1..=64;

/// Memory that a box may have, in MiB.
pub const MEMORY_MIB: RangeInclusive<u64> = 128..=64 << 10;

/// Everything that a machine is built from. Files come beside it, as descriptors; numbers refer to
/// them in their order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LaunchSpec {
    /// Number of vCPUs, in [`VCPUS`].
    pub(crate) vcpus: u8,
    /// Memory in MiB, in [`MEMORY_MIB`].
    pub(crate) memory_mib: u64,
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// The initramfs with the agent.
    pub(crate) initramfs: PathBuf,
    /// The agent's words of the kernel command line.
    pub(crate) boot: String,
    /// Disks, in the order of /dev/vda, /dev/vdb …
    pub(crate) disks: Vec<DiskSpec>,
    /// The box's folder, if it is to go with the box: removed when the launcher dies first.
    pub(crate) folder: Option<PathBuf>,
    /// The file that takes the guest's console, which then says all it does. Without one the console
    /// is only kept for the report of a panic.
    pub(crate) console: Option<usize>,
}

/// A virtio-blk device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DiskSpec {
    /// The disk's file.
    pub(crate) file: usize,
    /// What is in it.
    pub(crate) format: DiskFormat,
    /// For qcow2: the raw disk under it.
    pub(crate) backing: Option<usize>,
    /// Whether the disk is thrown away with the machine: nothing then has to reach the host's disk.
    pub(crate) ephemeral: bool,
}

/// Disk image formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DiskFormat {
    /// The disk's bytes as they are.
    Raw,
    /// qcow2, version 3.
    Qcow2,
}
