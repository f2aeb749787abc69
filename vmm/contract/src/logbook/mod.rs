//! The log of a box's main command: its output with stream and time, in `main.log` in the box's folder, and
//! before that in `main.log.1`.
//!
//! ```text
//!   file:    "BOXLOG1\n" [sequence u64]  record*             little endian
//!   record:  [length u32][stream u8][time u64][bytes]        time: nanoseconds since the Unix epoch
//! ```
//!
//! There is one writer at a time, the VM process, and any number of [`Reader`]s, which follow it through
//! rotations by the files' sequence numbers. A killed writer leaves at most half a record: readers wait for
//! the rest of it, and the next writer truncates it.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

use serde::{Deserialize, Serialize};

pub use reader::{Query, Reader};
pub use writer::Writer;

/// The file with the newest records.
pub const FILE: &str = "main.log";
/// The file with the records before those in [`FILE`].
pub const OLD_FILE: &str = "main.log.1";

/// The size at which a file is rotated, in bytes.
pub const FILE_LIMIT: u64 = 10 << 20;

/// The most bytes of one record; longer output becomes several records.
const MAX_RECORD: usize = 64 << 10;

const MAGIC: [u8; 8] = *b"BOXLOG1\n";
/// Magic and sequence number.
const FILE_HEADER: u64 = 16;
const RECORD_HEADER: usize = 13;

/// A piece of a main command's output.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// When the output arrived at the host: nanoseconds since the Unix epoch.
    pub at_ns: u64,
    /// The stream that the command wrote to.
    pub stream: LogStream,
    /// The output, unchanged: it need not end with a line, nor be text.
    pub bytes: Vec<u8>,
}

impl Record {
    /// A record.
    pub fn new(at_ns: u64, stream: LogStream, bytes: Vec<u8>) -> Self {
        Self { at_ns, stream, bytes }
    }
}

/// An output stream of a main command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    fn number(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }

    fn index(self) -> usize {
        usize::from(self.number() - 1)
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Stdout, Self::Stderr].into_iter().find(|stream| stream.number() == number)
    }
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    len: usize,
    stream: LogStream,
    at_ns: u64,
}

impl Header {
    fn encode(self) -> [u8; RECORD_HEADER] {
        let mut bytes = [0; RECORD_HEADER];
        bytes[..4].copy_from_slice(&(self.len as u32).to_le_bytes());
        bytes[4] = self.stream.number();
        bytes[5..].copy_from_slice(&self.at_ns.to_le_bytes());
        bytes
    }

    /// Returns `None` for a header that no writer writes.
    fn decode(bytes: &[u8; RECORD_HEADER]) -> Option<Self> {
        let [l0, l1, l2, l3, stream, at @ ..] = *bytes;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let stream = LogStream::from_number(stream)?;
        (1..=MAX_RECORD).contains(&len).then_some(Self {
            len,
            stream,
            at_ns: u64::from_le_bytes(at),
        })
    }
}

/// What [`record_at`] finds.
#[derive(Debug)]
enum Found {
    /// A whole record.
    Record(Record),
    /// Nothing, or the beginning of a record.
    End,
    /// Bytes that no writer writes, as a crash of the host may leave them.
    Garbage,
}

/// Reads the record at `offset`.
fn record_at(file: &std::fs::File, offset: u64) -> std::io::Result<Found> {
    let mut header = [0; RECORD_HEADER];
    if !read_at(file, &mut header, offset)? {
        return Ok(Found::End);
    }
    let Some(header) = Header::decode(&header) else { return Ok(Found::Garbage) };
    let mut bytes = vec![0; header.len];
    if !read_at(file, &mut bytes, offset + RECORD_HEADER as u64)? {
        return Ok(Found::End);
    }
    Ok(Found::Record(Record { at_ns: header.at_ns, stream: header.stream, bytes }))
}

/// Fills `bytes` from `offset`. Returns `false` if the file ends before that.
fn read_at(file: &std::fs::File, bytes: &mut [u8], offset: u64) -> std::io::Result<bool> {
    use std::os::unix::fs::FileExt;
    match file.read_exact_at(bytes, offset) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// The sequence number of a log file; `None` if the file is not a log.
fn sequence(file: &std::fs::File) -> std::io::Result<Option<u64>> {
    let mut header = [0; FILE_HEADER as usize];
    if !read_at(file, &mut header, 0)? {
        return Ok(None);
    }
    let (magic, number) = header.split_at(MAGIC.len());
    let number = number.try_into().ok().map(u64::from_le_bytes);
    // Numbers start at 1 and never reach the maximum: others come from a header that a crash of the host tore.
    Ok(number.filter(|number| magic == MAGIC && (1..u64::MAX).contains(number)))
}
