//! Reads a tar: turns blocks of 512 bytes into members, with their extensions applied.
//!
//! The crate `tar` has the layout of the fields. The rest is here because that crate hides what an unpacker needs:
//! the holes of sparse files, and PAX values that contain newlines.

use std::io::BufRead;

use tar::Header;

use super::ArchiveError;
use super::number::{field, unsigned};
use super::pax::Pax;
use super::sparse::{PaxMap, SparseMap, read_map_before_data};
use super::time::Time;

const BLOCK: u64 = 512;

/// Limit on an extension header (long name, PAX records) in bytes: it is held in memory.
const MAX_EXTENSION: u64 = 1 << 20;

/// The kind of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, whose data follows; with a sparse map, without its holes.
    File(Option<SparseMap>),
    /// A hard link to the member with this name.
    HardLink(Vec<u8>),
    /// A symlink with this target.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A character device.
    Character(Device),
    /// A block device.
    Block(Device),
    /// A named pipe.
    Fifo,
}

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// The major number: the driver.
    pub major: u32,
    /// The minor number: the driver's device.
    pub minor: u32,
}

/// A member of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name in the archive, not normalized.
    pub name: Vec<u8>,
    /// The kind.
    pub kind: Kind,
    /// Permissions with setuid, setgid and sticky bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Time,
    /// Extended attributes: names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar that is read.
pub struct Archive<R> {
    reader: R,
    /// Bytes of the current member's data that are not read, and of the padding after them.
    data: u64,
    padding: u64,
    last_name: Vec<u8>,
    /// Whether a header was read, which tells a damaged tar from a stream of something else.
    is_tar: bool,
}

/// Extensions that precede their member.
#[derive(Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Pax,
}

impl<R: BufRead> Archive<R> {
    /// Reads an archive from its start.
    pub fn new(reader: R) -> Self {
        Self { reader, data: 0, padding: 0, last_name: Vec::new(), is_tar: false }
    }

    /// The name of the member that was read last.
    pub fn last_name(&self) -> &[u8] {
        &self.last_name
    }

    /// Reads the next member. [`data`](Self::data) then reads its data; data that is not read is skipped.
    ///
    /// # Errors
    /// The tar is malformed or truncated.
    pub fn next_member(&mut self) -> Result<Option<Member>, ArchiveError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = size_field(&header)?;
            match header.entry_type().as_byte() {
                b'x' => extensions.pax = Pax::parse(&self.extension(size)?)?,
                b'g' => drop(self.extension(size)?),
                b'L' => extensions.long_name = Some(until_nul(self.extension(size)?)),
                b'K' => extensions.long_link = Some(until_nul(self.extension(size)?)),
                _ => return self.member(&header, size, extensions).map(Some),
            }
        }
    }

    /// Reads `len` bytes of the member's data, in pieces as they arrive.
    ///
    /// # Errors
    /// The errors of the archive and of the sink.
    pub fn data<E: From<ArchiveError>>(
        &mut self,
        len: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = len.min(self.data);
        while left > 0 {
            let available = fill(&mut self.reader)?;
            if available.is_empty() {
                return Err(ArchiveError::Truncated.into());
            }
            let n = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            sink(&available[..n])?;
            self.reader.consume(n);
            left -= n as u64;
            self.data -= n as u64;
        }
        Ok(())
    }

    /// Bytes of the member's data that are left.
    pub fn data_left(&self) -> u64 {
        self.data
    }

    /// Reads and discards the bytes after the archive.
    ///
    /// # Errors
    /// The stream failed.
    pub fn drain(&mut self) -> Result<(), ArchiveError> {
        loop {
            let n = fill(&mut self.reader)?.len();
            if n == 0 {
                return Ok(());
            }
            self.reader.consume(n);
        }
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        self.data += std::mem::take(&mut self.padding);
        self.data(u64::MAX, |_| Ok::<_, ArchiveError>(()))
    }

    /// Expects `size` bytes of data, padded to whole blocks.
    fn expect_data(&mut self, size: u64) -> Result<(), ArchiveError> {
        self.padding = size.wrapping_neg() % BLOCK;
        // Data and padding together must not overflow.
        self.data = Some(size)
            .filter(|size| *size <= i64::MAX as u64)
            .ok_or_else(|| ArchiveError::bad(format!("its size of {size} bytes is impossible")))?;
        Ok(())
    }

    /// Reads the next header; none at the end of the archive, which is a block of zeros or the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block == [0; 512] {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        if !checksum_matches(&header, &block) {
            if !self.is_tar {
                return Err(ArchiveError::NotTar);
            }
            let name = super::name::shown(&header.path_bytes());
            return Err(ArchiveError::bad(format!(
                "the header after it, perhaps of {name}, has a wrong checksum"
            )));
        }
        self.is_tar = true;
        Ok(Some(header))
    }

    fn block(&mut self) -> Result<Option<[u8; 512]>, ArchiveError> {
        let mut block = [0; 512];
        let mut have = 0;
        while have < block.len() {
            let available = fill(&mut self.reader)?;
            if available.is_empty() {
                return match have {
                    0 => Ok(None),
                    _ if self.is_tar => Err(ArchiveError::Truncated),
                    _ => Err(ArchiveError::Short),
                };
            }
            let n = available.len().min(block.len() - have);
            block[have..have + n].copy_from_slice(&available[..n]);
            self.reader.consume(n);
            have += n;
        }
        Ok(Some(block))
    }

    /// Reads the data of an extension header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > MAX_EXTENSION {
            return Err(ArchiveError::bad(format!("an extension header has {size} bytes")));
        }
        self.expect_data(size)?;
        let mut bytes = Vec::new();
        self.data(size, |data| {
            bytes.extend_from_slice(data);
            Ok::<_, ArchiveError>(())
        })?;
        Ok(bytes)
    }

    fn member(
        &mut self,
        header: &Header,
        size: u64,
        extensions: Extensions,
    ) -> Result<Member, ArchiveError> {
        let Extensions { long_name, long_link, pax } = extensions;
        let old = header.as_old();
        let sparse = pax.sparse;
        let name = sparse
            .name
            .clone()
            .or(pax.path)
            .or(long_name)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        self.last_name.clone_from(&name);
        if name.contains(&0) {
            return Err(ArchiveError::bad("its name contains a NUL byte"));
        }
        let link = pax
            .link
            .or(long_link)
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        if link.contains(&0) {
            return Err(ArchiveError::bad("its link contains a NUL byte"));
        }
        let size = pax.size.unwrap_or(size);
        // Only files have data, whatever the size field of other kinds contains.
        self.expect_data(0)?;
        let kind = match header.entry_type().as_byte() {
            // The oldest format has no type for directories: the name ends in a slash.
            b'0' | 0 if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => {
                self.expect_data(size)?;
                Kind::File(self.pax_sparse(&sparse)?)
            }
            b'S' => Kind::File(Some(self.gnu_sparse(header, size)?)),
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::Character(device(header)?),
            b'4' => Kind::Block(device(header)?),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let kind = other.escape_ascii();
                return Err(ArchiveError::bad(format!("its type '{kind}' is unknown")));
            }
        };
        Ok(Member {
            name,
            kind,
            mode: (field("mode", &old.mode)? & 0o7777) as u32,
            uid: id("uid", pax.uid, &old.uid)?,
            gid: id("gid", pax.gid, &old.gid)?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => Time { seconds: field("mtime", &old.mtime)?, nanoseconds: 0 },
            },
            xattrs: pax.xattrs,
        })
    }

    fn pax_sparse(
        &mut self,
        sparse: &super::sparse::PaxSparse,
    ) -> Result<Option<SparseMap>, ArchiveError> {
        let map = match sparse.map()? {
            None => return Ok(None),
            Some(PaxMap::Here(map)) => map,
            Some(PaxMap::BeforeData(size)) => read_map_before_data(size, || {
                let mut block = [0; 512];
                let mut have = 0;
                self.data(BLOCK, |data| {
                    block[have..have + data.len()].copy_from_slice(data);
                    have += data.len();
                    Ok::<_, ArchiveError>(())
                })?;
                if have < block.len() {
                    return Err(ArchiveError::bad("its sparse map is longer than its data"));
                }
                Ok(block)
            })?,
        };
        map.check(self.data).map(Some)
    }

    /// Reads a map in the old GNU format: four pieces in the header, more in blocks before the data.
    fn gnu_sparse(&mut self, header: &Header, size: u64) -> Result<SparseMap, ArchiveError> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| ArchiveError::bad("it is a GNU sparse file without a GNU header"))?;
        let mut map = SparseMap { pieces: Vec::new(), size: unsigned("real size", &gnu.realsize)? };
        push_pieces(&mut map, &gnu.sparse)?;
        let mut extended = gnu.is_extended();
        while extended {
            let block = self.block()?.ok_or(ArchiveError::Truncated)?;
            let mut extension = tar::GnuExtSparseHeader::new();
            extension.as_mut_bytes().copy_from_slice(&block);
            push_pieces(&mut map, extension.sparse())?;
            extended = extension.is_extended();
        }
        self.expect_data(size)?;
        map.check(size)
    }
}

fn push_pieces(map: &mut SparseMap, pieces: &[tar::GnuSparseHeader]) -> Result<(), ArchiveError> {
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        map.push(unsigned("offset", &piece.offset)?, unsigned("length", &piece.numbytes)?)?;
    }
    Ok(())
}

fn fill(reader: &mut impl BufRead) -> Result<&[u8], ArchiveError> {
    reader.fill_buf().map_err(ArchiveError::reading)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(nul) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(nul);
    }
    bytes
}

/// Whether the checksum is right: the sum of all bytes, with spaces in place of the checksum. Some old writers
/// summed signed bytes.
fn checksum_matches(header: &Header, block: &[u8; 512]) -> bool {
    let Ok(expected) = field("checksum", &header.as_old().cksum) else { return false };
    let bytes = || block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]);
    let unsigned: i64 = bytes().map(|b| i64::from(*b)).sum();
    let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
    expected == unsigned || expected == signed
}

fn size_field(header: &Header) -> Result<u64, ArchiveError> {
    unsigned("size", &header.as_old().size)
}

/// A user or group ID. The largest `u32` is refused, because it means "no ID" to the kernel.
fn id(what: &str, pax: Option<u64>, field: &[u8]) -> Result<u32, ArchiveError> {
    let id = match pax {
        Some(id) => id,
        None => unsigned(what, field)?,
    };
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| ArchiveError::bad(format!("its {what} {id} is out of range")))
}

fn device(header: &Header) -> Result<Device, ArchiveError> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        _ => return Err(ArchiveError::bad("it is a device without a number")),
    };
    let device = Device {
        // The kernel has 12 bits for the major and 20 for the minor number.
        major: u32::try_from(field("major number", major)?)
            .ok()
            .filter(|n| *n < 1 << 12)
            .ok_or_else(|| ArchiveError::bad("its major number is out of range"))?,
        minor: u32::try_from(field("minor number", minor)?)
            .ok()
            .filter(|n| *n < 1 << 20)
            .ok_or_else(|| ArchiveError::bad("its minor number is out of range"))?,
    };
    Ok(device)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wrong_checksum_is_refused() {
        let mut header = Header::new_ustar();
        header.set_path("file").unwrap();
        header.set_size(0);
        header.set_cksum();
        let mut tar = header.as_bytes().repeat(2);
        tar[512] ^= 1;
        let mut archive = Archive::new(&tar[..]);
        assert_eq!(archive.next_member().unwrap().unwrap().name, b"file");
        assert!(matches!(archive.next_member(), Err(ArchiveError::Bad(_))));
        let mut archive = Archive::new(&tar[..700]);
        archive.next_member().unwrap();
        assert!(matches!(archive.next_member(), Err(ArchiveError::Truncated)));
    }

    #[test]
    fn a_stream_without_a_header_is_no_tar() {
        let error = |garbage: &[u8]| Archive::new(garbage).next_member().unwrap_err();
        for garbage in [&[0xf3; 512][..], &[0xf3; 4096]] {
            assert_eq!(error(garbage).to_string(), "the input is not a tar archive");
        }
        for short in [&b"hello\n"[..], &[0xf3; 511]] {
            assert!(matches!(error(short), ArchiveError::Short));
        }
        assert!(Archive::new(&b""[..]).next_member().unwrap().is_none());
    }

    proptest! {
        /// The checksums are right, so that the fields are parsed.
        #[test]
        fn any_headers_parse_or_fail(
            mut blocks in proptest::collection::vec(proptest::array::uniform32(any::<u8>()), 0..8),
            kind in prop::sample::select(&b"\x000123456xgLKSV"[..]),
            magic in prop::sample::select(vec![&b"ustar\x0000"[..], b"ustar  \0", b""]),
        ) {
            let mut bytes = Vec::new();
            for block in &mut blocks {
                let mut header = Header::new_old();
                let raw = header.as_mut_bytes();
                raw[..32].copy_from_slice(block);
                raw[124..136].copy_from_slice(b"00000001000\0");
                raw[482..506].copy_from_slice(&block[..24]);
                raw[156] = kind;
                raw[257..257 + magic.len()].copy_from_slice(magic);
                header.set_cksum();
                bytes.extend_from_slice(header.as_bytes());
                bytes.extend_from_slice(&[b'1'; 512]);
            }
            let mut archive = Archive::new(&bytes[..]);
            for _ in 0..32 {
                if !matches!(archive.next_member(), Ok(Some(_))) {
                    break;
                }
            }
        }
    }
}
