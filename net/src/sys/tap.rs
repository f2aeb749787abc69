//! A TAP device as a guest: Linux's TCP/IP stack in a network namespace, for tests and benchmarks. Needs
//! `CAP_NET_ADMIN`.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::ioctl;
use crate::link::{Link, Offload, OffloadFeatures, Received, Sent};

/// Bytes of `struct virtio_net_hdr`, by default of the tun driver.
const HEADER: usize = 10;
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// The most pieces of a frame.
const MAX_PIECES: usize = 32;

/// A TAP device with offloads, as a link.
pub struct TapLink {
    file: File,
    features: OffloadFeatures,
}

impl TapLink {
    /// Creates the TAP device `name` (at most 15 bytes), which exists as long as this value. It may be
    /// moved to another network namespace.
    ///
    /// # Errors
    /// There is no /dev/net/tun, or this process lacks `CAP_NET_ADMIN`.
    pub fn create(name: &str, features: OffloadFeatures) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        ioctl::attach(file.as_fd(), name)?;
        ioctl::set_offloads(file.as_fd(), features)?;
        Ok(Self { file, features })
    }
}

impl Link for TapLink {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn features(&self) -> OffloadFeatures {
        self.features
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let mut header = [0; HEADER];
        loop {
            let mut pieces = [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)];
            match self.file.read_vectored(&mut pieces) {
                Ok(n) => {
                    let checksum_valid = header[0] & (NEEDS_CSUM | DATA_VALID) != 0;
                    let len = n.saturating_sub(HEADER);
                    return Ok(Some(Received { len, checksum_valid }));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> io::Result<Sent> {
        let header = header(offload);
        let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
        let count = frame.len() + 1;
        let Some((first, rest)) = pieces.get_mut(..count).and_then(<[_]>::split_first_mut) else {
            return Err(io::Error::other(format!("a frame in {} pieces", frame.len())));
        };
        *first = IoSlice::new(&header);
        rest.copy_from_slice(frame);
        match self.file.write_vectored(&pieces[..count]) {
            Ok(_) => Ok(Sent::Sent),
            // The device's queue is the receiver's backlog, which drops frames when it is full; the
            // same happens to this frame.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(Sent::Sent)
            }
            // The device is down.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(Sent::Sent),
            // The kernel rejects the frame, or has no memory for it.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOMEM)) => {
                tracing::debug!("tap: a frame is lost: {e}");
                Ok(Sent::Sent)
            }
            Err(e) => Err(e),
        }
    }
}

fn header(offload: Offload) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    if let Some(checksum) = offload.checksum {
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&checksum.start.to_ne_bytes());
        header[8..10].copy_from_slice(&checksum.offset.to_ne_bytes());
    }
    header[1] = GSO_NONE;
    if let Some(segmentation) = offload.segmentation {
        header[1] = if segmentation.v6 { GSO_TCPV6 } else { GSO_TCPV4 };
        header[2..4].copy_from_slice(&segmentation.header_len.to_ne_bytes());
        header[4..6].copy_from_slice(&segmentation.segment_size.to_ne_bytes());
    }
    header
}
