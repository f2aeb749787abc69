//! Where a file with holes has data.
//!
//! The map depends on the content alone (blocks of zeros are holes, wherever the file system has
//! them), so that the same directory always yields the same stream.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::sys;

/// A stretch of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// Files shorter than this are written out with their zeros.
const MIN_LEN: u64 = 1 << 20;
/// Zeros count as a hole in stretches of this.
const BLOCK: u64 = 64 << 10;
/// From this many segments on, the rest of a file is written out.
const MAX_SEGMENTS: usize = 1 << 14;

/// The data of a file at least half of which is holes, ending with an empty segment at its end
/// (so does the tar header); none for other files.
pub(super) fn map(file: &File, metadata: &std::fs::Metadata) -> io::Result<Option<Vec<Segment>>> {
    let len = metadata.len();
    if len < MIN_LEN || metadata.blocks().saturating_mul(512) > len / 2 {
        return Ok(None);
    }
    let mut segments: Vec<Segment> = Vec::new();
    let mut buffer = vec![0; BLOCK as usize];
    let mut at = 0;
    while let Some((start, end)) = sys::next_data(file, at)? {
        at = start.max(at) / BLOCK * BLOCK;
        let end = end.min(len);
        while at < end {
            let wanted = BLOCK.min(len - at);
            let block = buffer.get_mut(..wanted as usize).unwrap_or_default();
            file.read_exact_at(block, at)?;
            if block.iter().any(|byte| *byte != 0) {
                match segments.last_mut().filter(|last| last.start + last.len >= at) {
                    Some(last) => last.len = at + wanted - last.start,
                    None => segments.push(Segment { start: at, len: wanted }),
                }
            }
            at += wanted;
        }
        if segments.len() >= MAX_SEGMENTS
            && let Some(last) = segments.last_mut()
        {
            last.len = len - last.start;
            break;
        }
        if at >= len {
            break;
        }
    }
    segments.push(Segment { start: len, len: 0 });
    Ok(Some(segments))
}

#[cfg(test)]
mod tests;
