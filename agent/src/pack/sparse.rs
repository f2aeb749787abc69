//! Where the data of a file is.

use std::fmt::Write;
use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::entry::BLOCK;

/// More pieces than this are not told apart: the last one then reaches to the end, holes included.
const MAX_PIECES: usize = 1 << 16;

/// Holes smaller than this are not worth a header of their own.
const MIN_SAVED: u64 = 64 << 10;

/// A piece of a file with data in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// The pieces of a file of `size` bytes; none if it is as good as without holes. `blocks` is what it
/// occupies, in units of 512 bytes.
pub(super) fn pieces(file: impl AsFd, size: u64, blocks: u64) -> Option<Vec<Piece>> {
    if blocks.saturating_mul(512).saturating_add(MIN_SAVED) > size {
        return None;
    }
    let mut pieces = Vec::new();
    let mut end = 0;
    while end < size {
        let offset = match seek(&file, SeekFrom::Data(end)) {
            Ok(offset) => offset.min(size),
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        end = match seek(&file, SeekFrom::Hole(offset)) {
            _ if pieces.len() + 1 == MAX_PIECES => size,
            Ok(end) => end.min(size),
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        // The file may be changing: never backward, never in place.
        if end <= offset {
            break;
        }
        pieces.push(Piece { offset, len: end - offset });
    }
    Some(pieces)
}

/// The map as text before the data: how many pieces, then each (GNU tar manual, "PAX Format, Version
/// 1.0"). A last piece without data says where the file ends.
pub(super) fn map(pieces: &[Piece], size: u64) -> Vec<u8> {
    let last = Piece { offset: size, len: 0 };
    let ends_in_hole = pieces.last().is_none_or(|piece| piece.offset + piece.len < size);
    let pieces = || pieces.iter().chain(ends_in_hole.then_some(&last));
    let mut text = format!("{}\n", pieces().count());
    for Piece { offset, len } in pieces() {
        let _ = write!(text, "{offset}\n{len}\n");
    }
    let mut map = text.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn the_map_names_the_pieces_and_the_end() {
        let text = |pieces: &[Piece], size| {
            let map = map(pieces, size);
            assert_eq!(map.len() % BLOCK, 0);
            String::from_utf8(map).unwrap().trim_end_matches('\0').to_owned()
        };
        assert_eq!(text(&[], 9), "1\n9\n0\n");
        assert_eq!(text(&[Piece { offset: 4, len: 5 }], 9), "1\n4\n5\n");
        assert_eq!(text(&[Piece { offset: 4, len: 4 }], 9), "2\n4\n4\n9\n0\n");
    }

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
        let pieces = pieces(&file, 8 << 20, blocks).unwrap();
        let total: u64 = pieces.iter().map(|piece| piece.len).sum();
        assert!(pieces.len() == 2 && (8192..1 << 20).contains(&total), "{pieces:?}");
        assert!(pieces[0].offset <= 1 << 20 && pieces[0].offset + pieces[0].len > 1 << 20);
        assert_eq!(super::pieces(&file, 4096, 8), None);
    }
}
