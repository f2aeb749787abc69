//! One virtio-blk request (virtio 1.3, section 5.2.6): checked, carried out, answered.

use std::io;

use boxlite_disk::{Disk, SECTOR};
use virtio_bindings::virtio_blk::*;
use vm_memory::Bytes;

use crate::virtio::chain::{Buffers, Chain};

/// The identification string's length, in bytes.
pub(super) const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;
/// The most sectors of one discard or write zeroes segment: 1 GiB.
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 21;
/// The most segments of one discard or write zeroes request.
pub(super) const MAX_ZERO_SEGMENTS: u32 = 32;

const SEGMENT_LEN: usize = 16;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("request without a whole header")]
    NoHeader,
    #[error("request without room for its status")]
    NoStatus,
    #[error("request type {0} is not supported")]
    Unsupported(u32),
    #[error("flags {0:#x} are not supported here")]
    Flags(u32),
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("{sectors} sectors at sector {sector} reach over the end of the disk")]
    Range { sector: u64, sectors: u64 },
    #[error("{0} bytes are not a number of sectors")]
    Unaligned(usize),
    #[error("{0} bytes are not a number of segments that is allowed")]
    Segments(usize),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl RequestError {
    /// The status byte that tells the driver.
    fn status(&self) -> u8 {
        let status = match self {
            Self::Unsupported(_) | Self::Flags(_) => VIRTIO_BLK_S_UNSUPP,
            _ => VIRTIO_BLK_S_IOERR,
        };
        status as u8
    }

    /// Whether the host has no room for what the guest writes.
    pub(super) fn is_host_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self, Self::Io(e) if matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }
}

/// What a request came to.
pub(super) struct Outcome {
    /// Bytes written to guest memory, status included.
    pub(super) written: u32,
    /// Bytes moved between disk and memory.
    pub(super) moved: usize,
    /// Bytes of data that a read or a write was about.
    pub(super) data: usize,
    /// The request's type, if it had one.
    pub(super) kind: Option<u32>,
    /// Whether it was to change the disk.
    pub(super) writes: bool,
    pub(super) result: Result<(), RequestError>,
}

/// Carries out the request in `chain` and writes its status.
///
/// With `write_through` a write is on stable storage before it is answered.
pub(super) fn execute(
    disk: &mut Disk,
    id: &[u8; ID_LEN],
    write_through: bool,
    mut chain: Chain<'_>,
) -> Outcome {
    let Some(status) = chain.writable.take_last() else {
        let result = Err(RequestError::NoStatus);
        return Outcome { written: 0, moved: 0, data: 0, kind: None, writes: false, result };
    };
    let moved = chain.readable.len().max(chain.writable.len());
    let header = Header::take(&mut chain);
    let writes = header.as_ref().is_some_and(Header::writes);
    let kind = header.as_ref().map(|header| header.kind);
    let data = match kind {
        Some(VIRTIO_BLK_T_IN) => chain.writable.len(),
        Some(VIRTIO_BLK_T_OUT) => chain.readable.len(),
        _ => 0,
    };
    let result = header
        .ok_or(RequestError::NoHeader)
        .and_then(|header| carry_out(disk, id, write_through, header, chain));
    let byte = match &result {
        Ok(_) => VIRTIO_BLK_S_OK as u8,
        Err(e) => e.status(),
    };
    // One byte that is known to be in guest memory.
    let _ = status.write_obj(byte, 0);
    let written = *result.as_ref().unwrap_or(&0);
    // A chain's bytes, status included, fit u32.
    let written = u32::try_from(written).unwrap_or(u32::MAX).saturating_add(1);
    Outcome { written, moved, data, kind, writes, result: result.map(drop) }
}

/// What a request starts with.
struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    fn take(chain: &mut Chain<'_>) -> Option<Self> {
        let kind = u32::from_le_bytes(chain.readable.take_front()?);
        let _priority: [u8; 4] = chain.readable.take_front()?;
        let sector = u64::from_le_bytes(chain.readable.take_front()?);
        Some(Self { kind, sector })
    }

    fn writes(&self) -> bool {
        matches!(self.kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES)
    }
}

/// Returns the number of bytes written to the chain.
fn carry_out(
    disk: &mut Disk,
    id: &[u8; ID_LEN],
    write_through: bool,
    header: Header,
    mut chain: Chain<'_>,
) -> Result<usize, RequestError> {
    let writes = header.writes();
    let Header { kind, sector } = header;
    if writes && disk.is_read_only() {
        return Err(RequestError::ReadOnly);
    }
    let written = match kind {
        VIRTIO_BLK_T_IN => {
            let data = &chain.writable;
            disk.read(data.slices(), byte_offset(disk, sector, data)?)?;
            data.len()
        }
        VIRTIO_BLK_T_OUT => {
            let data = &chain.readable;
            disk.write(data.slices(), byte_offset(disk, sector, data)?)?;
            0
        }
        VIRTIO_BLK_T_FLUSH => {
            disk.flush()?;
            0
        }
        VIRTIO_BLK_T_GET_ID => chain.writable.fill_from(id),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            clear(disk, kind, &mut chain.readable)?;
            0
        }
        other => return Err(RequestError::Unsupported(other)),
    };
    if writes && write_through {
        disk.flush()?;
    }
    Ok(written)
}

/// Where on the disk `data` goes or comes from, in bytes.
fn byte_offset(disk: &Disk, sector: u64, data: &Buffers<'_>) -> Result<u64, RequestError> {
    let len = data.len() as u64;
    if !len.is_multiple_of(SECTOR) {
        return Err(RequestError::Unaligned(data.len()));
    }
    byte_range(disk, sector, len / SECTOR).map(|(offset, _)| offset)
}

/// The bytes of a range of sectors, if the disk has them: offset and length.
fn byte_range(disk: &Disk, sector: u64, sectors: u64) -> Result<(u64, u64), RequestError> {
    match sector.checked_add(sectors) {
        Some(end) if end <= disk.size() / SECTOR => Ok((sector * SECTOR, sectors * SECTOR)),
        _ => Err(RequestError::Range { sector, sectors }),
    }
}

/// Discard and write zeroes. All segments are checked before the first is touched.
fn clear(disk: &mut Disk, kind: u32, segments: &mut Buffers<'_>) -> Result<(), RequestError> {
    let len = segments.len();
    let count = len / SEGMENT_LEN;
    if len == 0 || !len.is_multiple_of(SEGMENT_LEN) || count > MAX_ZERO_SEGMENTS as usize {
        return Err(RequestError::Segments(len));
    }
    let allowed = match kind {
        VIRTIO_BLK_T_WRITE_ZEROES => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
        _ => 0,
    };
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let sector = u64::from_le_bytes(segments.take_front().ok_or(RequestError::Segments(len))?);
        let sectors = u32::from_le_bytes(segments.take_front().ok_or(RequestError::Segments(len))?);
        let flags = u32::from_le_bytes(segments.take_front().ok_or(RequestError::Segments(len))?);
        if flags & !allowed != 0 {
            return Err(RequestError::Flags(flags));
        }
        if sectors > MAX_ZERO_SECTORS {
            return Err(RequestError::Range { sector, sectors: sectors.into() });
        }
        let (offset, len) = byte_range(disk, sector, sectors.into())?;
        ranges.push((offset, len, flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0));
    }
    for (offset, len, unmap) in ranges {
        match kind {
            VIRTIO_BLK_T_WRITE_ZEROES => disk.write_zeroes(offset, len, unmap)?,
            _ => disk.discard(offset, len)?,
        }
    }
    Ok(())
}
