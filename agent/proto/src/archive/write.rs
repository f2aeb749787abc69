//! Writes the header of an entry: ustar (POSIX.1-2017, pax, "ustar Interchange Format"), with PAX records before it
//! for values that do not fit into ustar.

use std::io::{self, Write};

use tar::{EntryType, Header};

use super::read::Device;
use super::time::Time;

/// Size of a tar block in bytes.
pub const BLOCK: usize = 512;

/// The largest octal numbers in a field of 12 bytes, and in one of 8.
const MAX_12: u64 = 0o777_7777_7777;
const MAX_8: u64 = 0o777_7777;

/// The content of a header.
pub struct Entry<'a> {
    /// Its name; that of a directory ends in a slash.
    pub name: &'a [u8],
    /// Its type.
    pub kind: EntryType,
    /// The target of a link.
    pub link: &'a [u8],
    /// Mode, owner, group and time.
    pub attributes: Attributes,
    /// The number of a device.
    pub device: Option<Device>,
    /// Bytes of data that follow in the tar.
    pub stored: u64,
    /// The size of a sparse file, whose map precedes its data (GNU tar manual, "PAX Format, Version 1.0").
    pub sparse_size: Option<u64>,
    /// Extended attributes: names, without an equals sign, and values.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// The attributes that all kinds of entries have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions with setuid, setgid and sticky bits (`0o7777`).
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Time,
}

impl Entry<'_> {
    /// Writes the PAX records and the header, which precede the data.
    ///
    /// # Errors
    /// The errors of `to`.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let records = self.records();
        if !records.is_empty() {
            let mut header = header(EntryType::XHeader, b"PaxHeaders", b"", records.len() as u64);
            header.set_cksum();
            to.write_all(header.as_bytes())?;
            to.write_all(&records)?;
            to.write_all(padding(records.len() as u64))?;
        }
        // Readers without support for sparse files extract the map and the data under this name.
        let name = if self.sparse_size.is_some() { b"GNUSparseFile" } else { self.name };
        let mut header = header(self.kind, name, self.link, self.stored.min(MAX_12));
        let Attributes { mode, uid, gid, mtime } = self.attributes;
        header.set_mode(mode & 0o7777);
        header.set_uid(u64::from(uid).min(MAX_8));
        header.set_gid(u64::from(gid).min(MAX_8));
        header.set_mtime(u64::try_from(mtime.seconds).unwrap_or(0).min(MAX_12));
        if let (Some(device), Some(ustar)) = (self.device, header.as_ustar_mut()) {
            ustar.set_device_major(device.major);
            ustar.set_device_minor(device.minor);
        }
        header.set_cksum();
        to.write_all(header.as_bytes())
    }

    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut add = |key: &[u8], value: &[u8]| append_record(&mut records, key, value);
        let decimal = |number: u64| number.to_string().into_bytes();
        let plain = |name: &[u8]| name.len() <= 100 && name.is_ascii();
        match self.sparse_size {
            Some(size) => {
                add(b"GNU.sparse.major", b"1");
                add(b"GNU.sparse.minor", b"0");
                add(b"GNU.sparse.name", self.name);
                add(b"GNU.sparse.realsize", &decimal(size));
            }
            None if !plain(self.name) => add(b"path", self.name),
            None => {}
        }
        if !plain(self.link) {
            add(b"linkpath", self.link);
        }
        if self.stored > MAX_12 {
            add(b"size", &decimal(self.stored));
        }
        for (key, id) in [(b"uid", self.attributes.uid), (b"gid", self.attributes.gid)] {
            if u64::from(id) > MAX_8 {
                add(key, &decimal(id.into()));
            }
        }
        let Time { seconds, nanoseconds } = self.attributes.mtime;
        if nanoseconds != 0 || !u64::try_from(seconds).is_ok_and(|seconds| seconds <= MAX_12) {
            add(b"mtime", &time(seconds, nanoseconds));
        }
        for (name, value) in self.xattrs {
            add(&[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        records
    }
}

/// The zeros that fill the last block of `len` bytes.
pub fn padding(len: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let missing = len.wrapping_neg() % BLOCK as u64;
    ZEROS.get(..missing as usize).unwrap_or_default()
}

fn header(kind: EntryType, name: &[u8], link: &[u8], size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let old = header.as_old_mut();
    for (field, text) in [(&mut old.name, name), (&mut old.linkname, link)] {
        // A longer text is in a PAX record; the field has its beginning.
        let len = text.len().min(field.len());
        if let (Some(field), Some(text)) = (field.get_mut(..len), text.get(..len)) {
            field.copy_from_slice(text);
        }
    }
    header
}

/// Formats seconds with a fraction. The kernel's nanoseconds count forward from the second before, the fraction of
/// a negative decimal number counts backward.
fn time(seconds: i64, nanoseconds: u32) -> Vec<u8> {
    match (seconds < 0, nanoseconds) {
        (true, 1..) => {
            let whole = (seconds + 1).unsigned_abs();
            format!("-{whole}.{:09}", 1_000_000_000_u32.saturating_sub(nanoseconds)).into_bytes()
        }
        (_, 0) => seconds.to_string().into_bytes(),
        (false, _) => format!("{seconds}.{nanoseconds:09}").into_bytes(),
    }
}

/// Appends `LENGTH KEY=VALUE\n`, where the length includes its own digits.
fn append_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let payload = key.len() + value.len() + 3;
    let mut len = payload + 1;
    while len != payload + len.to_string().len() {
        len = payload + len.to_string().len();
    }
    records.extend_from_slice(len.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_length() {
        let record = |value: &[u8]| {
            let mut records = Vec::new();
            append_record(&mut records, b"path", value);
            records
        };
        assert_eq!(record(b"x"), b"9 path=x\n");
        assert_eq!(record(b"xy"), b"11 path=xy\n");
        assert_eq!(record(b""), b"8 path=\n");
        for len in 0..2000 {
            let record = record(&vec![b'v'; len]);
            let digits = record.split(|b| *b == b' ').next().unwrap();
            assert_eq!(std::str::from_utf8(digits).unwrap().parse(), Ok(record.len()));
        }
    }

    #[test]
    fn times_before_and_after_the_epoch() {
        assert_eq!(time(1, 5), b"1.000000005");
        assert_eq!(time(-1, 0), b"-1");
        assert_eq!(time(-2, 750_000_000), b"-1.250000000");
        assert_eq!(time(-1, 500_000_000), b"-0.500000000");
        assert_eq!(time(i64::MIN, 1).first(), Some(&b'-'));
    }

    #[test]
    fn padding_fills_the_block() {
        for (len, missing) in [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511)] {
            assert_eq!(padding(len).len(), missing);
        }
    }
}
