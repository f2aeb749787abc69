//! Creates qcow2 overlays.

use std::fs::File;

use imago::FormatCreateBuilder;
use imago::file::File as Storage;
use imago::qcow2::Qcow2;

use crate::{DiskError, check_size};

/// Cluster size of new overlays, in bytes. The first write to a cluster copies the rest of the
/// cluster from the base: with QEMU's 64 KiB a first write of 4 KiB takes about eight times as long.
const CLUSTER_SIZE: usize = 16 * 1024;

/// Formats `file`, open for reading and writing, as an empty qcow2 image of `size` bytes, a
/// multiple of 512, and discards its content.
///
/// Open the image with its base as `backing`: clusters that were never written are read from the
/// base, whose name the image does not record. `size` must be at least the size of the base.
pub fn create_overlay(file: File, size: u64) -> Result<(), DiskError> {
    check_size("overlay", size)?;
    let create = || {
        file.set_len(0)?;
        Qcow2::<Storage>::create_builder(Storage::try_from(file)?)
            .size(size)
            .cluster_size(CLUSTER_SIZE)
            .create()
    };
    create().map_err(|source| DiskError::Create { size, source })
}
