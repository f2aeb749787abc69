//! Packs files as entries of a tar, for both ends of a copy.
//!
//! The callers walk the trees, because the two ends find their files differently. Files may change or disappear
//! meanwhile: a file that has disappeared is left out, and a file that changes keeps the size in its header.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Dev, FileType, Mode, OFlags, SeekFrom, Stat, fstat, openat, seek};
use rustix::io::{Errno, pread};
use tar::EntryType;

use super::read::Device;
use super::sparse::Piece;
use super::time::Time;
use super::write::{Attributes, Entry, padding};
use super::{Xattrs, holes};

/// Limit on files with several names whose other names are still to come. Further ones are packed once for each
/// name.
const MAX_LINKED: usize = 1 << 18;

/// The kernel's limit on the names of a file's attributes, and on one of their values.
const MAX_XATTR: usize = 64 << 10;

/// Limit on the attributes of one file, in bytes in total.
const MAX_XATTRS: usize = 512 << 10;

const BUFFER: usize = 64 << 10;

/// Identifies a file independently of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inode {
    device: Dev,
    number: u64,
}

impl Inode {
    /// The identity of the file with this metadata.
    pub fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, number: stat.st_ino }
    }
}

/// Why a file could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The file cannot be opened, inspected or read.
    #[error(transparent)]
    Read(#[from] Errno),
    /// The tar cannot be written.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Writes the entries of files.
pub struct Packer<W> {
    to: W,
    /// The first name of files with several names, and the number of names still to come.
    links: HashMap<Inode, (Vec<u8>, u128)>,
    buffer: Vec<u8>,
    entries: u64,
    bytes: u64,
}

impl<W: Write> Packer<W> {
    /// Packs into `to`, in small writes.
    pub fn new(to: W) -> Self {
        Self { to, links: HashMap::new(), buffer: vec![0; BUFFER], entries: 0, bytes: 0 }
    }

    /// Number of entries written.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Bytes of file content written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The name under which a file was packed already. Otherwise records this name as its first.
    pub fn first_name(&mut self, stat: &Stat, name: &[u8]) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        let inode = Inode::of(stat);
        match self.links.get_mut(&inode) {
            Some((first, left)) => {
                *left = left.saturating_sub(1);
                if *left > 0 {
                    return Some(first.clone());
                }
                self.links.remove(&inode).map(|(first, _)| first)
            }
            None => {
                if self.links.len() < MAX_LINKED {
                    // The type of the count depends on the architecture.
                    let left = u128::from(stat.st_nlink) - 1;
                    self.links.insert(inode, (name.to_vec(), left));
                }
                None
            }
        }
    }

    /// Drops the first name of a file, which was not packed after all.
    pub fn forget(&mut self, stat: &Stat) {
        self.links.remove(&Inode::of(stat));
    }

    /// Writes an entry without data.
    pub fn entry(
        &mut self,
        name: &[u8],
        kind: EntryType,
        link: &[u8],
        stat: &Stat,
        xattrs: &Xattrs,
    ) -> io::Result<()> {
        let device = matches!(kind, EntryType::Char | EntryType::Block).then(|| Device {
            major: rustix::fs::major(stat.st_rdev),
            minor: rustix::fs::minor(stat.st_rdev),
        });
        let attributes = attributes(stat);
        let entry =
            Entry { name, kind, link, attributes, device, stored: 0, sparse_size: None, xattrs };
        self.entries += 1;
        entry.write(&mut self.to)
    }

    /// Writes the entry and the data of a file that [`open`] returned. With `sparse`, holes are left out.
    pub fn file(
        &mut self,
        name: &[u8],
        file: &OwnedFd,
        stat: &Stat,
        sparse: bool,
        xattrs: &Xattrs,
    ) -> Result<(), PackError> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let blocks = u64::try_from(stat.st_blocks).ok().filter(|_| sparse).unwrap_or(u64::MAX);
        let pieces = holes::pieces(size, blocks, |at| next_data(file, at));
        let map = pieces.as_ref().map(|pieces| holes::map(pieces, size));
        let pieces = pieces.unwrap_or_else(|| vec![Piece { offset: 0, len: size }]);
        let data: u64 = pieces.iter().map(|piece| piece.len).sum();
        let entry = Entry {
            name,
            kind: EntryType::Regular,
            link: b"",
            attributes: attributes(stat),
            device: None,
            stored: data + map.as_ref().map_or(0, |map| map.len() as u64),
            sparse_size: map.is_some().then_some(size),
            xattrs,
        };
        self.entries += 1;
        entry.write(&mut self.to)?;
        if let Some(map) = &map {
            self.to.write_all(map)?;
        }
        for piece in pieces {
            self.copy(file, piece)?;
        }
        Ok(self.to.write_all(padding(data))?)
    }

    /// Writes a piece of a file, with zeros for data that has been truncated meanwhile.
    fn copy(&mut self, file: &OwnedFd, piece: Piece) -> Result<(), PackError> {
        let (mut offset, mut left) = (piece.offset, piece.len);
        while left > 0 {
            let max = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let buffer = &mut self.buffer[..max];
            let n = match pread(file, &mut *buffer, offset) {
                Ok(0) => {
                    buffer.fill(0);
                    max
                }
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            self.to.write_all(&self.buffer[..n])?;
            self.bytes += n as u64;
            offset += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    /// Writes the end of the archive.
    pub fn finish(&mut self) -> io::Result<()> {
        self.to.write_all(&[0; 1024])?;
        self.to.flush()
    }
}

/// Opens the file in `dir` that was `seen` there; none if it was removed or replaced meanwhile.
pub fn open(dir: impl AsFd, name: &[u8], seen: &Stat) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(dir, name, flags | OFlags::NOCTTY, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let stat = fstat(&file)?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok((is_file && Inode::of(&stat) == Inode::of(seen)).then_some((file, stat)))
}

/// The attributes that all kinds of entries have.
fn attributes(stat: &Stat) -> Attributes {
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Attributes {
        mode: permissions(stat),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Time { seconds: stat.st_mtime, nanoseconds },
    }
}

/// The permission bits of a file, with set-user-ID, set-group-ID and sticky.
#[allow(clippy::useless_conversion, reason = "a mode has 16 or 32 bits, depending on the system")]
fn permissions(stat: &Stat) -> u32 {
    u32::from(stat.st_mode & 0o7777)
}

/// The first data of a file at or after an offset.
fn next_data(file: &OwnedFd, at: u64) -> rustix::io::Result<Option<Range<u64>>> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    Ok(Some(start..seek(file, SeekFrom::Hole(start))?))
}

/// Reads the extended attributes that a tar can hold and whose names are `kept`. Without support in the file
/// system, and for a file that is gone, there are none. Attributes that cannot be read are left out.
pub fn xattrs(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
    kept: impl Fn(&[u8]) -> bool,
) -> Xattrs {
    let mut few = [0; 1024];
    let mut many = Vec::new();
    let names = match list(&mut few) {
        Err(Errno::RANGE) => {
            many.resize(MAX_XATTR, 0);
            list(&mut many).ok().and_then(|len| many.get(..len))
        }
        result => result.ok().and_then(|len| few.get(..len)),
    };
    let fits = |name: &&[u8]| !name.is_empty() && !name.contains(&b'=') && kept(name);
    let mut names = names.unwrap_or_default().split(|b| *b == 0).filter(fits).peekable();
    if names.peek().is_none() {
        return Xattrs::new();
    }
    let mut total = 0;
    let mut value = vec![0; MAX_XATTR];
    let mut xattrs = Xattrs::new();
    for name in names {
        let Ok(len) = get(name, &mut value) else { continue };
        total += name.len() + len;
        if total > MAX_XATTRS {
            break;
        }
        xattrs.push((name.to_vec(), value.get(..len).unwrap_or_default().to_vec()));
    }
    xattrs
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn holes_are_found() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[1; 4096], 1 << 20).unwrap();
        file.write_all_at(&[1; 4096], 5 << 20).unwrap();
        let blocks = file.metadata().unwrap().blocks();
        if blocks * 512 >= 8 << 20 {
            eprintln!("SKIPPED: the temporary directory's file system has no holes");
            return;
        }
        let file = OwnedFd::from(file);
        let pieces = holes::pieces(8 << 20, blocks, |at| next_data(&file, at)).unwrap();
        let total: u64 = pieces.iter().map(|piece| piece.len).sum();
        assert!(pieces.len() == 2 && (8192..1 << 20).contains(&total), "{pieces:?}");
        assert!(pieces[0].offset <= 1 << 20 && pieces[0].offset + pieces[0].len > 1 << 20);
    }

    #[test]
    fn a_file_is_forgotten_after_its_last_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name| dir.path().join(name);
        std::fs::write(path("a"), b"x").unwrap();
        std::fs::hard_link(path("a"), path("b")).unwrap();
        std::fs::hard_link(path("a"), path("c")).unwrap();
        let stat = rustix::fs::stat(path("a")).unwrap();
        let mut packer = Packer::new(Vec::new());
        let mut first = |name: &[u8]| packer.first_name(&stat, name);
        assert_eq!((first(b"a"), first(b"b")), (None, Some(b"a".to_vec())));
        assert_eq!(first(b"c"), Some(b"a".to_vec()));
        assert!(packer.links.is_empty());
    }

    #[test]
    fn a_replaced_file_is_not_packed() {
        let dir = tempfile::tempdir().unwrap();
        let handle = std::fs::File::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("file"), b"old").unwrap();
        let seen = rustix::fs::stat(dir.path().join("file")).unwrap();
        assert!(open(&handle, b"file", &seen).unwrap().is_some());
        std::fs::write(dir.path().join("other"), b"new").unwrap();
        std::fs::rename(dir.path().join("other"), dir.path().join("file")).unwrap();
        assert!(open(&handle, b"file", &seen).unwrap().is_none());
        std::fs::remove_file(dir.path().join("file")).unwrap();
        assert!(open(&handle, b"file", &seen).unwrap().is_none());
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("file")).unwrap();
        assert!(open(&handle, b"file", &seen).unwrap().is_none());
    }
}
