//! ioctls that rustix lacks.

use std::os::fd::AsFd;

use rustix::io;
use rustix::ioctl::{Getter, Setter, ioctl, opcode};

const BLKGETSIZE64: rustix::ioctl::Opcode = opcode::read::<usize>(0x12, 114);
const EXT4_IOC_RESIZE_FS: rustix::ioctl::Opcode = opcode::write::<u64>(b'f', 16);
const SIOCOUTQ: rustix::ioctl::Opcode = libc::TIOCOUTQ as rustix::ioctl::Opcode;

/// Size of a block device in bytes.
pub(crate) fn block_device_size(device: impl AsFd) -> io::Result<u64> {
    // SAFETY: BLKGETSIZE64 writes one u64.
    unsafe { ioctl(device, Getter::<BLKGETSIZE64, u64>::new()) }
}

/// Grows the mounted ext4 that contains `file` to this many blocks.
pub(crate) fn ext4_resize(file: impl AsFd, blocks: u64) -> io::Result<()> {
    // SAFETY: EXT4_IOC_RESIZE_FS reads one u64.
    unsafe { ioctl(file, Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks)) }
}

/// Bytes that were written to a socket and not sent yet.
pub(crate) fn unsent_bytes(socket: impl AsFd) -> io::Result<i32> {
    // SAFETY: SIOCOUTQ writes one int.
    unsafe { ioctl(socket, Getter::<SIOCOUTQ, i32>::new()) }
}
