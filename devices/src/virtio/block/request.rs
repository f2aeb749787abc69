//! Requests of a driver (virtio 1.3, section 5.2.6): parsed once, then executed.
//!
//! ```text
//!   chain ── parse ──▶ Request ── execute ──▶ Disk
//!   status byte ◀── answer ── Ok, or RequestError
//! ```
//!
//! Parsing checks everything that the guest says: a [`Request`] fits the disk, and only the host
//! can make it fail. All of a request is checked before any of it is executed.

use std::io;

use boxlite_disk::{Disk, SECTOR};
use virtio_bindings::virtio_blk::*;
use vm_memory::{Bytes, VolatileSlice};

use crate::virtio::chain::{Buffers, Chain};

/// Length of the identification string, in bytes.
pub(super) const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;
/// The most sectors of one discard or write zeroes segment: 1 GiB.
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 21;
/// The most segments of one discard or write zeroes request.
pub(super) const MAX_ZERO_SEGMENTS: u32 = 32;

/// Length of a segment, in bytes: sector, number of sectors, flags.
const SEGMENT_LEN: usize = 16;

/// A request that fits its disk. Offsets and lengths are in bytes.
#[derive(Debug)]
pub(super) enum Request<'m> {
    /// `VIRTIO_BLK_T_IN`
    Read { offset: u64, data: Buffers<'m> },
    /// `VIRTIO_BLK_T_OUT`
    Write { offset: u64, data: Buffers<'m> },
    /// `VIRTIO_BLK_T_FLUSH`
    Flush,
    /// `VIRTIO_BLK_T_DISCARD`
    Discard(Vec<Segment>),
    /// `VIRTIO_BLK_T_WRITE_ZEROES`
    WriteZeroes(Vec<Segment>),
    /// `VIRTIO_BLK_T_GET_ID`
    GetId { buffer: Buffers<'m> },
}

/// A range of the disk that a request clears.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    offset: u64,
    len: u64,
    /// The space may be freed.
    unmap: bool,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("request without a whole header")]
    NoHeader,
    #[error("request without room for its status")]
    NoStatus,
    #[error("request type {0} is not supported")]
    Unsupported(u32),
    #[error("flags {0:#x} are not supported in a segment")]
    Flags(u32),
    #[error("write to a read-only disk")]
    ReadOnly,
    #[error("{sectors} sectors from sector {sector} on are not all on the disk")]
    Range { sector: u64, sectors: u64 },
    #[error("length {0} is not a multiple of 512")]
    Unaligned(usize),
    #[error("{0} bytes of segments: a request has 1 to 32 segments of 16 bytes")]
    Segments(usize),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl RequestError {
    /// Whether the host has no space for the guest's write.
    pub(super) fn is_host_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self, Self::Io(e) if matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }
}

/// Writes a request's status (`VIRTIO_BLK_S_*`) into its last byte. Returns the number of bytes
/// written to guest memory, status included.
pub(super) fn answer(status: VolatileSlice<'_>, result: &Result<usize, RequestError>) -> u32 {
    let (byte, written) = match result {
        Ok(written) => (VIRTIO_BLK_S_OK, *written),
        Err(RequestError::Unsupported(_) | RequestError::Flags(_)) => (VIRTIO_BLK_S_UNSUPP, 0),
        Err(_) => (VIRTIO_BLK_S_IOERR, 0),
    };
    // One byte that is known to be in guest memory.
    let _ = status.write_obj(byte as u8, 0);
    // A chain's bytes, status included, fit u32.
    u32::try_from(written).unwrap_or(u32::MAX).saturating_add(1)
}

impl<'m> Request<'m> {
    /// Parses the request in `chain`, from which the status byte was cut off.
    pub(super) fn parse(chain: Chain<'m>, disk: &Disk) -> Result<Self, RequestError> {
        let Chain { readable: mut input, writable: output } = chain;
        let (kind, sector) = header(&mut input).ok_or(RequestError::NoHeader)?;
        let changes = [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES];
        if disk.is_read_only() && changes.contains(&kind) {
            return Err(RequestError::ReadOnly);
        }
        Ok(match kind {
            VIRTIO_BLK_T_IN => {
                Self::Read { offset: data_offset(disk, sector, &output)?, data: output }
            }
            VIRTIO_BLK_T_OUT => {
                Self::Write { offset: data_offset(disk, sector, &input)?, data: input }
            }
            VIRTIO_BLK_T_FLUSH => Self::Flush,
            VIRTIO_BLK_T_DISCARD => Self::Discard(segments(disk, &mut input, 0)?),
            VIRTIO_BLK_T_WRITE_ZEROES => {
                Self::WriteZeroes(segments(disk, &mut input, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)?)
            }
            VIRTIO_BLK_T_GET_ID => Self::GetId { buffer: output },
            other => return Err(RequestError::Unsupported(other)),
        })
    }

    /// Whether the request changes the disk.
    pub(super) fn writes(&self) -> bool {
        match self {
            Self::Write { .. } | Self::Discard(_) | Self::WriteZeroes(_) => true,
            Self::Read { .. } | Self::Flush | Self::GetId { .. } => false,
        }
    }

    /// Executes the request. Returns the number of bytes written to guest memory.
    ///
    /// With `write_through`, a change is on stable storage when this returns.
    pub(super) fn execute(
        &self,
        disk: &mut Disk,
        id: &[u8; ID_LEN],
        write_through: bool,
    ) -> Result<usize, RequestError> {
        let written = match self {
            Self::Read { offset, data } => {
                disk.read(data.slices(), *offset)?;
                data.len()
            }
            Self::Write { offset, data } => {
                disk.write(data.slices(), *offset)?;
                0
            }
            Self::Flush => {
                disk.flush()?;
                0
            }
            Self::Discard(segments) => {
                for segment in segments {
                    disk.discard(segment.offset, segment.len)?;
                }
                0
            }
            Self::WriteZeroes(segments) => {
                for segment in segments {
                    disk.write_zeroes(segment.offset, segment.len, segment.unmap)?;
                }
                0
            }
            Self::GetId { buffer } => buffer.fill_from(id),
        };
        if write_through && self.writes() {
            disk.flush()?;
        }
        Ok(written)
    }
}

/// Cuts off a request's header: its type and sector.
fn header(input: &mut Buffers<'_>) -> Option<(u32, u64)> {
    let kind = u32::from_le_bytes(input.take_front()?);
    let _priority: [u8; 4] = input.take_front()?;
    let sector = u64::from_le_bytes(input.take_front()?);
    Some((kind, sector))
}

/// The offset at which `data` is read or written.
fn data_offset(disk: &Disk, sector: u64, data: &Buffers<'_>) -> Result<u64, RequestError> {
    let len = data.len() as u64;
    match len.is_multiple_of(SECTOR) {
        true => range(disk, sector, len / SECTOR).map(|(offset, _)| offset),
        false => Err(RequestError::Unaligned(data.len())),
    }
}

/// Offset and length of a range of sectors, if all of it is on the disk.
fn range(disk: &Disk, sector: u64, sectors: u64) -> Result<(u64, u64), RequestError> {
    match sector.checked_add(sectors) {
        Some(end) if end <= disk.size() / SECTOR => Ok((sector * SECTOR, sectors * SECTOR)),
        _ => Err(RequestError::Range { sector, sectors }),
    }
}

/// The segments of a discard or write zeroes request, which may have flags `allowed`.
fn segments(
    disk: &Disk,
    input: &mut Buffers<'_>,
    allowed: u32,
) -> Result<Vec<Segment>, RequestError> {
    let len = input.len();
    let count = len / SEGMENT_LEN;
    if len == 0 || !len.is_multiple_of(SEGMENT_LEN) || count > MAX_ZERO_SEGMENTS as usize {
        return Err(RequestError::Segments(len));
    }
    (0..count).map(|_| segment(disk, input, allowed)).collect()
}

fn segment(disk: &Disk, input: &mut Buffers<'_>, allowed: u32) -> Result<Segment, RequestError> {
    let short = RequestError::Segments(input.len());
    let fields = (input.take_front(), input.take_front(), input.take_front());
    let (Some(sector), Some(sectors), Some(flags)) = fields else { return Err(short) };
    let (sector, sectors) = (u64::from_le_bytes(sector), u32::from_le_bytes(sectors));
    let flags = u32::from_le_bytes(flags);
    if flags & !allowed != 0 {
        return Err(RequestError::Flags(flags));
    }
    if sectors > MAX_ZERO_SECTORS {
        return Err(RequestError::Range { sector, sectors: sectors.into() });
    }
    let (offset, len) = range(disk, sector, sectors.into())?;
    Ok(Segment { offset, len, unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 })
}
