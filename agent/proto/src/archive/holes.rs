//! Finds the data in a sparse file, and writes the sparse map of a tar.

use std::fmt::Write;
use std::ops::Range;

use super::sparse::Piece;
use super::write::BLOCK;

/// Limit on pieces. The last one reaches to the end of the file, with its holes.
const MAX_PIECES: usize = 1 << 16;

/// Files whose holes are smaller than this in total are stored without a sparse map.
const MIN_SAVED: u64 = 64 << 10;

/// The pieces of a file of `size` bytes that have data; none if the file has hardly any holes.
///
/// `blocks` is the number of blocks of 512 bytes that the file occupies. `next_data` finds the first data at or
/// after an offset: `Ok(None)` if only a hole is left, and an error if the file system does not support that.
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
        // The file may change meanwhile: the offset must grow in each step.
        if end <= offset {
            break;
        }
        pieces.push(Piece { offset, len: end - offset });
    }
    Some(pieces)
}

/// The sparse map as text before the data: the number of pieces, then each piece (GNU tar manual, "PAX Format,
/// Version 1.0"). A last piece without data marks the end of the file.
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
    fn pieces_are_in_order_and_inside_the_file() {
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
    fn the_last_of_too_many_pieces_reaches_to_the_end() {
        let crumbs = |at: u64| Ok::<_, ()>(Some(at + 4096..at + 8192));
        let size = 8192 * (MAX_PIECES as u64 + 10);
        let pieces = pieces(size, 8, crumbs).unwrap();
        let last = pieces.last().unwrap();
        assert!(pieces.len() == MAX_PIECES && last.offset + last.len == size);
    }
}
