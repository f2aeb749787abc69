//! Random access to a tar file: one pass over the headers records the range of each member's
//! content.
//!
//! Not the tar crate's iterator: it reads long names and PAX headers of any size into memory, and
//! ignores PAX sizes in a raw walk. Its header decoding is used.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// Maximum number of members; images have some hundreds.
const MAX_MEMBERS: usize = 1 << 16;
/// Maximum length of all names together, in bytes.
const MAX_NAME_BYTES: usize = 16 << 20;
/// Maximum length of a long name or PAX header, in bytes.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Maximum number of links in a row.
const MAX_LINKS: usize = 8;

/// The members of a tar file, by normalized path.
#[derive(Debug, Default)]
pub(super) struct TarIndex {
    members: HashMap<String, Member>,
}

#[derive(Debug, PartialEq)]
enum Member {
    File { start: u64, len: u64 },
    Link { target: String },
}

impl TarIndex {
    /// Indexes a tar file of `len` bytes.
    pub(super) fn scan(file: &File, len: u64) -> io::Result<Self> {
        let mut walk = Walk { file, len, offset: 0, extensions: Extensions::default() };
        let mut index = Self::default();
        let mut name_bytes = 0;
        while let Some((name, member)) = walk.next_member()? {
            name_bytes += name.len();
            index.members.insert(name, member);
            if index.members.len() > MAX_MEMBERS || name_bytes > MAX_NAME_BYTES {
                return Err(invalid("it has more members than any image"));
            }
        }
        Ok(index)
    }

    /// Start and length of a member's content; links are followed.
    pub(super) fn find(&self, path: &str) -> Option<(u64, u64)> {
        let mut path = normalized(path)?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&path)? {
                Member::File { start, len } => return Some((*start, *len)),
                Member::Link { target } => path.clone_from(target),
            }
        }
        None
    }
}

#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

struct Walk<'a> {
    file: &'a File,
    len: u64,
    offset: u64,
    extensions: Extensions,
}

impl Walk<'_> {
    fn next_member(&mut self) -> io::Result<Option<(String, Member)>> {
        while self.offset < self.len {
            let mut block = [0; BLOCK as usize];
            self.file.read_exact_at(&mut block, self.offset).map_err(|_| truncated())?;
            if block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            check_sum(header)?;
            let kind = header.entry_type();
            let extensions = match is_extension(kind) {
                true => Extensions::default(),
                false => std::mem::take(&mut self.extensions),
            };
            // Types without content may use the size field for something else.
            let has_content = !matches!(
                kind,
                EntryType::Link
                    | EntryType::Symlink
                    | EntryType::Char
                    | EntryType::Block
                    | EntryType::Directory
                    | EntryType::Fifo
            );
            let size = match has_content {
                true => extensions.size.map_or_else(|| header.entry_size(), Ok)?,
                false => 0,
            };
            let start = self.offset + BLOCK;
            let end =
                start.checked_add(size).filter(|end| *end <= self.len).ok_or_else(truncated)?;
            self.offset = end.next_multiple_of(BLOCK);

            if is_extension(kind) {
                self.extend(kind, start, size)?;
                continue;
            }
            let name = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
            let Some(name) = String::from_utf8(name).ok().and_then(|name| normalized(&name)) else {
                continue; // nothing in an image refers to such a name
            };
            let link = extensions.link.or_else(|| Some(header.link_name_bytes()?.into_owned()));
            let link = link.and_then(|link| String::from_utf8(link).ok());
            let member = match kind {
                EntryType::Regular | EntryType::Continuous => {
                    Some(Member::File { start, len: size })
                }
                EntryType::Link => link.and_then(|link| normalized(&link)).map(link_to),
                EntryType::Symlink => {
                    link.and_then(|link| normalized(&beside(&name, &link))).map(link_to)
                }
                EntryType::GNUSparse => {
                    return Err(invalid("it has sparse members; make it again with docker save"));
                }
                _ => None,
            };
            if let Some(member) = member {
                return Ok(Some((name, member)));
            }
        }
        Ok(None)
    }

    fn extend(&mut self, kind: EntryType, start: u64, size: u64) -> io::Result<()> {
        if size > MAX_EXTENSION_BYTES {
            return Err(invalid("it has a name or extended header of more than 1 MiB"));
        }
        let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
        self.file.read_exact_at(&mut content, start).map_err(|_| truncated())?;
        let until_nul = |mut name: Vec<u8>| {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            name.truncate(end);
            name
        };
        match kind {
            EntryType::GNULongName => self.extensions.path = Some(until_nul(content)),
            EntryType::GNULongLink => self.extensions.link = Some(until_nul(content)),
            EntryType::XHeader => {
                for record in PaxRecords(&content) {
                    match record? {
                        (b"path", value) => self.extensions.path = Some(value.to_owned()),
                        (b"linkpath", value) => self.extensions.link = Some(value.to_owned()),
                        (b"size", value) => {
                            let size =
                                std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                            self.extensions.size =
                                Some(size.ok_or_else(|| invalid("it has a malformed PAX size"))?);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn is_extension(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::GNULongName
            | EntryType::GNULongLink
            | EntryType::XHeader
            | EntryType::XGlobalHeader
    )
}

fn link_to(target: String) -> Member {
    Member::Link { target }
}

/// The records of a PAX header, `length key=value\n` each, split by their length: values are
/// arbitrary bytes.
struct PaxRecords<'a>(&'a [u8]);

impl<'a> Iterator for PaxRecords<'a> {
    type Item = io::Result<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        if bytes.is_empty() {
            return None;
        }
        let parse = || {
            let digits = bytes.iter().take(20).position(|byte| *byte == b' ')?;
            let len: usize = std::str::from_utf8(bytes.get(..digits)?).ok()?.parse().ok()?;
            let record = bytes.get(digits + 1..len)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            Some((bytes.get(len..)?, (record.get(..equals)?, record.get(equals + 1..)?)))
        };
        Some(match parse() {
            Some((rest, record)) => {
                self.0 = rest;
                Ok(record)
            }
            None => Err(invalid("it has a malformed PAX header")),
        })
    }
}

/// Checks a header's checksum: the sum of its bytes, with spaces for its own field.
fn check_sum(header: &Header) -> io::Result<()> {
    let sum: u32 = header
        .as_bytes()
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(*byte) })
        .sum();
    match header.cksum() {
        Ok(expected) if expected == sum => Ok(()),
        _ => Err(invalid("it is not a tar archive, or a header in it is damaged")),
    }
}

/// The target of a link, relative to the root of the archive.
fn beside(name: &str, target: &str) -> String {
    match (target.starts_with('/'), name.rsplit_once('/')) {
        (true, _) | (false, None) => target.to_owned(),
        (false, Some((parent, _))) => format!("{parent}/{target}"),
    }
}

/// The path without `.`, `..` and superfluous slashes; none if it leaves the archive.
fn normalized(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn truncated() -> io::Error {
    invalid("it ends in the middle of a member (the copy was cut short)")
}

#[cfg(test)]
mod tests;
