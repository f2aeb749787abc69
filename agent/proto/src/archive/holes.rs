//! Where the data of a file is, and how a tar says so.

use std::fmt::Write;
use std::ops::Range;

use super::sparse::Piece;
use super::write::BLOCK;

/// More pieces than this are not told apart: the last one then reaches to the end, holes included.
const MAX_PIECES: usize = 1 << 16;

/// Holes smaller than this are not worth a header of their own.
const MIN_SAVED: u64 = 64 << 10;

/// The pieces of a file of `size` bytes that have data; none if it is as good as without holes.
///
/// `blocks` is what it occupies, in units of 512 bytes. `next_data` finds the first data at or after
/// an offset: `Ok(None)` if only a hole is left, and an error where the file system cannot tell.
pub fn pieces<E>(
    size: u64,
    blocks: u64,
    mut next_data: impl FnMut(u64) -> Result<Option<Range<u64>>, E>,
) -> Option<Vec<Piece>> {
    if blocks.saturating_mul(512).saturating_add(MIN_SAVED) > size {
        return None;
    }
    let mut pieces = Vec::new();
    let mut end = 0;
    while end < size {
        let Some(data) = next_data(end).ok()? else { break };
        let offset = data.start.clamp(end, size);
        end = if pieces.len() + 1 == MAX_PIECES { size } else { data.end.min(size) };
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
pub fn map(pieces: &[Piece], size: u64) -> Vec<u8> {
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
    fn pieces_are_in_order_and_inside_whatever_is_found() {
        let find = |found: &[Range<u64>]| {
            let mut found = found.iter().cloned();
            pieces(8 << 20, 16, |_| Ok::<_, ()>(found.next()))
        };
        let piece = |offset, len| Piece { offset, len };
        assert_eq!(find(&[]), Some(vec![]));
        assert_eq!(find(&[4096..8192, 1 << 20..9 << 20]), {
            Some(vec![piece(4096, 4096), piece(1 << 20, 7 << 20)])
        });
        // The file was changed meanwhile.
        assert_eq!(find(&[4096..8192, 0..4096]), Some(vec![piece(4096, 4096)]));
        assert_eq!(pieces(8 << 20, 16, |_| Err(())), None);
        assert_eq!(pieces(4096, 8, |_| Ok::<_, ()>(None)), None);
    }

    #[test]
    fn a_file_of_crumbs_is_written_out_at_last() {
        let crumbs = |at: u64| Ok::<_, ()>(Some(at + 4096..at + 8192));
        let size = 8192 * (MAX_PIECES as u64 + 10);
        let pieces = pieces(size, 8, crumbs).unwrap();
        let last = pieces.last().unwrap();
        assert!(pieces.len() == MAX_PIECES && last.offset + last.len == size);
    }
}
