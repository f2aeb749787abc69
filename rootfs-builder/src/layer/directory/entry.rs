//! Encoder of tar headers, GNU dialect: long names as `L` and `K` members (any bytes but NUL),
//! extended attributes as PAX `SCHILY.xattr.*` records, sparse files as type `S`.

use tar::{EntryType, GnuExtSparseHeader, GnuHeader, Header};

use super::sparse::Segment;

const BLOCK: usize = 512;
const NAME_LEN: usize = 100;

/// All fields of a member, without its content.
pub(super) struct Entry<'a> {
    /// Relative path; a directory's ends in a slash.
    pub(super) path: &'a [u8],
    pub(super) kind: EntryType,
    /// Permission, set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since the epoch.
    pub(super) mtime: u64,
    /// Bytes of content; for a sparse file, of its data.
    pub(super) size: u64,
    /// Target of a symbolic or hard link.
    pub(super) link: &'a [u8],
    /// Device numbers (major, minor) of a device node.
    pub(super) device: Option<(u32, u32)>,
    pub(super) xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// Apparent length, and the data segments.
    pub(super) sparse: Option<(u64, &'a [Segment])>,
}

impl Entry<'_> {
    /// Encodes the blocks before the content.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 * BLOCK);
        if !self.xattrs.is_empty() {
            let records: Vec<u8> = self.xattrs.iter().flat_map(|(k, v)| pax_xattr(k, v)).collect();
            extension(&mut out, EntryType::XHeader, &records);
        }
        if self.path.len() > NAME_LEN {
            extension(&mut out, EntryType::GNULongName, &[self.path, b"\0"].concat());
        }
        if self.link.len() > NAME_LEN {
            extension(&mut out, EntryType::GNULongLink, &[self.link, b"\0"].concat());
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        header.set_mtime(self.mtime);
        header.set_size(self.size);
        let mut more_segments = &[][..];
        if let Some(gnu) = header.as_gnu_mut() {
            copy(&mut gnu.name, self.path);
            copy(&mut gnu.linkname, self.link);
            let (major, minor) = self.device.unwrap_or_default();
            number(&mut gnu.dev_major, major.into());
            number(&mut gnu.dev_minor, minor.into());
            if let Some((real_size, segments)) = self.sparse {
                more_segments = sparse_header(gnu, real_size, segments);
            }
        }
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        while !more_segments.is_empty() {
            let mut ext = GnuExtSparseHeader::new();
            let (now, later) = more_segments.split_at(more_segments.len().min(ext.sparse.len()));
            for (slot, segment) in ext.sparse.iter_mut().zip(now) {
                number(&mut slot.offset, segment.start);
                number(&mut slot.numbytes, segment.len);
            }
            ext.isextended = [u8::from(!later.is_empty())];
            out.extend_from_slice(ext.as_bytes());
            more_segments = later;
        }
        out
    }
}

/// Writes the first segments; returns those for extension blocks.
fn sparse_header<'a>(
    gnu: &mut GnuHeader,
    real_size: u64,
    segments: &'a [Segment],
) -> &'a [Segment] {
    number(&mut gnu.realsize, real_size);
    let (now, later) = segments.split_at(segments.len().min(gnu.sparse.len()));
    for (slot, segment) in gnu.sparse.iter_mut().zip(now) {
        number(&mut slot.offset, segment.start);
        number(&mut slot.numbytes, segment.len);
    }
    gnu.isextended = [u8::from(!later.is_empty())];
    later
}

/// A member that extends the next one.
fn extension(out: &mut Vec<u8>, kind: EntryType, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    if let Some(gnu) = header.as_gnu_mut() {
        copy(&mut gnu.name, b"././@LongLink");
    }
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// Copies as much of `text` as fits.
fn copy(field: &mut [u8], text: &[u8]) {
    field.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
}

/// Writes a number in octal, or if it does not fit, in GNU's base 256.
fn number(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let octal = format!("{value:0width$o}");
    field.fill(0);
    if octal.len() <= width {
        copy(field, octal.as_bytes());
    } else {
        let bytes = value.to_be_bytes();
        field.iter_mut().rev().zip(bytes.iter().rev()).for_each(|(to, from)| *to = *from);
        if let Some(first) = field.first_mut() {
            *first |= 0x80;
        }
    }
}

/// `length SCHILY.xattr.name=value\n`; the length includes itself.
fn pax_xattr(name: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" SCHILY.xattr.", name, b"=", value, b"\n"].concat();
    let mut len = rest.len();
    while len != rest.len() + len.to_string().len() {
        len = rest.len() + len.to_string().len();
    }
    [len.to_string().as_bytes(), &rest].concat()
}

#[cfg(test)]
mod tests;
