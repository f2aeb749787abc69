//! A packet capture as a stream, for a file that the box's process cannot write: the content of the pcap file in
//! chunks, and how the capture ended. Without the end, a process that was killed would leave a file that looks complete.
//!
//! ```text
//!   chunk: [length u32][bytes]     end: [0 u32][length u32][JSON: CaptureEnd]     little endian
//! ```

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// The largest chunk, in bytes.
pub const CHUNK: usize = 64 << 10;

/// The longest JSON of an end, in bytes.
pub const MAX_END: usize = 4 << 10;

/// How a capture ended that did not break off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureEnd {
    /// Whether the capture reached its limit, and packets after that are missing.
    pub full: bool,
    /// Packets that are missing before the end, because the stream was slower than the packets.
    pub skipped: u64,
}

/// Writes the content of a pcap file as chunks.
#[derive(Debug)]
pub struct CaptureStream<W>(W);

impl<W: Write> CaptureStream<W> {
    /// A stream over `to`, which is not written to yet.
    pub fn new(to: W) -> Self {
        Self(to)
    }

    /// Writes the end.
    pub fn end(mut self, end: CaptureEnd) -> io::Result<()> {
        let json = serde_json::to_vec(&end)?;
        let len = json.len() as u32;
        self.0.write_all(&[&0_u32.to_le_bytes(), &len.to_le_bytes(), &*json].concat())?;
        self.0.flush()
    }
}

impl<W: Write> Write for CaptureStream<W> {
    /// Writes a chunk. An error may leave a part of it in the stream, which must not be written to any more.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = bytes.get(..CHUNK).unwrap_or(bytes);
        if bytes.is_empty() {
            return Ok(0);
        }
        self.0.write_all(&[&(bytes.len() as u32).to_le_bytes(), bytes].concat())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_writes_are_split_and_the_end_is_not_part_of_the_content() {
        let mut bytes = Vec::new();
        let mut stream = CaptureStream::new(&mut bytes);
        assert_eq!(stream.write(&[]).unwrap(), 0);
        stream.write_all(&[7; CHUNK + 1]).unwrap();
        let end = CaptureEnd { full: true, skipped: u64::MAX };
        stream.end(end).unwrap();
        let (first, rest) = bytes.split_at(4 + CHUNK);
        assert_eq!(first[..5], [0, 0, 1, 0, 7]);
        assert_eq!(rest[..9], [1, 0, 0, 0, 7, 0, 0, 0, 0]);
        let (length, json) = rest[9..].split_at(4);
        assert_eq!(u32::from_le_bytes(length.try_into().unwrap()) as usize, json.len());
        assert!(json.len() <= MAX_END);
        assert_eq!(serde_json::from_slice::<CaptureEnd>(json).unwrap(), end);
    }
}
