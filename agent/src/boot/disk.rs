//! Mounts the guest's ext4 disk, and grows it online to the size of its device.
//!
//! A disk starts as a small template. Growing takes time, so it is done only if the superblock has fewer
//! blocks than the device.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::{self, pread};
use rustix::mount::{MountFlags, mount};

use crate::sys::ioctl;

/// The guest's first disk.
pub(crate) const DEVICE: &str = "/dev/vda";

/// Why the disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("cannot open the disk {DEVICE}: {0}")]
    Open(#[source] io::Errno),
    #[error("the disk {DEVICE} holds no ext4 file system")]
    NotExt4,
    #[error("cannot mount the disk {DEVICE} on {at}: {errno}")]
    Mount { at: String, errno: io::Errno },
    #[error("cannot grow the file system on {DEVICE} to {blocks} blocks: {errno}")]
    Grow { blocks: u64, errno: io::Errno },
}

/// Mounts the disk at `at` and grows its file system to the device.
pub(crate) fn mount_grown(at: &str, options: &std::ffi::CStr) -> Result<(), DiskError> {
    let device = rustix::fs::open(DEVICE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(DiskError::Open)?;
    let grow_to = blocks_to_grow_to(&device)?;
    drop(device);
    mount(DEVICE, at, "ext4", MountFlags::empty(), options)
        .map_err(|errno| DiskError::Mount { at: at.to_owned(), errno })?;
    let Some(blocks) = grow_to else { return Ok(()) };
    rustix::fs::open(at, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|root| ioctl::ext4_resize(root, blocks))
        .map_err(|errno| DiskError::Grow { blocks, errno })
}

/// The number of blocks to grow to: the device's, if the file system has fewer.
fn blocks_to_grow_to(device: &OwnedFd) -> Result<Option<u64>, DiskError> {
    let size = ioctl::block_device_size(device).map_err(DiskError::Open)?;
    let mut superblock = [0; 1024];
    let n = pread(device, &mut superblock, 1024).map_err(DiskError::Open)?;
    if n < superblock.len() {
        return Err(DiskError::NotExt4);
    }
    let geometry = Geometry::parse(&superblock).ok_or(DiskError::NotExt4)?;
    let blocks = size / geometry.block_size;
    Ok((blocks > geometry.blocks).then_some(blocks))
}

/// Size of an ext4 file system.
#[derive(Debug, PartialEq, Eq)]
struct Geometry {
    block_size: u64,
    blocks: u64,
}

impl Geometry {
    /// Parses an ext4 superblock (kernel documentation, "Super Block").
    fn parse(superblock: &[u8; 1024]) -> Option<Self> {
        const MAGIC: u16 = 0xef53;
        const INCOMPAT_64BIT: u32 = 0x80;
        let le32 = |at: usize| Some(u32::from_le_bytes(*superblock.get(at..)?.first_chunk()?));
        let magic = u16::from_le_bytes(*superblock.get(0x38..)?.first_chunk()?);
        let log_block_size = le32(0x18)?;
        // 1 KiB to 64 KiB.
        if magic != MAGIC || log_block_size > 6 {
            return None;
        }
        let high = if le32(0x60)? & INCOMPAT_64BIT != 0 { le32(0x150)? } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(le32(4)?);
        Some(Self { block_size: 1024 << log_block_size, blocks })
    }
}

#[cfg(test)]
mod tests;
