//! Recognizes files on the kernel's own file systems.

use std::collections::BTreeSet;

use crate::inspect::mountinfo::{Mount, MountTable};

/// The devices (`st_dev`) of the kernel's own file systems that are mounted.
pub(super) struct KernelFileSystems(BTreeSet<u64>);

impl KernelFileSystems {
    /// The file systems that are mounted now.
    pub(super) fn mounted() -> Self {
        let table = MountTable::read();
        Self(table.mounts().filter(Mount::is_kernel).map(|mount| mount.device).collect())
    }

    /// Whether the file with this status is on one of them.
    pub(super) fn contain(&self, stat: &rustix::fs::Stat) -> bool {
        self.0.contains(&stat.st_dev)
    }
}

#[cfg(test)]
mod tests;
