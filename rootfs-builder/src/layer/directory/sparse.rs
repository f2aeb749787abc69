//! Data segments of sparse files.
//!
//! The map depends on the content only (blocks of zeros are holes, wherever the file system has
//! them), so that the same directory always yields the same stream.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::sys;

/// A range of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// Shorter files are written with their zeros.
const MIN_LEN: u64 = 1 << 20;
/// Granularity of holes.
const BLOCK: u64 = 64 << 10;
/// Maximum number of segments; the rest of the file is one segment.
const MAX_SEGMENTS: usize = 1 << 14;

/// Data segments of a file at least half of which is holes, followed by an empty segment at its end
/// (the tar format wants one); none for other files.
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
