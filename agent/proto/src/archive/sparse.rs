//! Sparse maps: the pieces of a file that a tar contains. The rest of the file are holes.
//!
//! There are four formats (GNU tar manual, "Sparse Formats"): the old GNU header with its extension blocks, and PAX
//! 0.0 (a record per number), 0.1 (one record with all numbers) and 1.0 (text before the data).

use super::ArchiveError;
use super::number::decimal;

/// Limit on pieces, which are held in memory.
const MAX_PIECES: usize = 1 << 20;

/// A piece of a file that the tar contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its offset in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// The positions of a sparse file's data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparseMap {
    /// In order, without overlap, and inside the file.
    pub pieces: Vec<Piece>,
    /// Size of the file, holes included.
    pub size: u64,
}

impl SparseMap {
    /// Adds a piece. Bounds the number of pieces while the map is read.
    pub(super) fn push(&mut self, offset: u64, len: u64) -> Result<(), ArchiveError> {
        if self.pieces.len() >= MAX_PIECES {
            return Err(ArchiveError::bad(format!(
                "its sparse map has more than {MAX_PIECES} pieces"
            )));
        }
        self.pieces.push(Piece { offset, len });
        Ok(())
    }

    /// Checks that the pieces are in order, without overlap and inside the file, and have `stored` bytes in total.
    pub(super) fn check(self, stored: u64) -> Result<Self, ArchiveError> {
        let mut end = 0;
        let mut total = 0_u64;
        for Piece { offset, len } in &self.pieces {
            let piece_end = offset.checked_add(*len).filter(|piece_end| *piece_end <= self.size);
            end = piece_end.filter(|_| *offset >= end).ok_or_else(|| {
                ArchiveError::bad("its sparse map is out of order or out of the file")
            })?;
            // Cannot overflow: the pieces do not overlap and are inside the file.
            total += len;
        }
        if total != stored {
            return Err(ArchiveError::bad(format!(
                "its sparse map has {total} bytes of data, the tar {stored}"
            )));
        }
        Ok(self)
    }
}

/// The PAX records `GNU.sparse.*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    /// The file's real name; `path` is a generated one then.
    pub(super) name: Option<Vec<u8>>,
    /// Size of the file. Set if the file is sparse.
    size: Option<u64>,
    version: (u64, u64),
    /// Numbers of the formats 0.0 and 0.1, in pairs.
    numbers: Vec<u64>,
}

/// The position of a PAX sparse file's map.
pub(super) enum PaxMap {
    /// In the records.
    Here(SparseMap),
    /// Before the data; the file has this size.
    BeforeData(u64),
}

impl PaxSparse {
    /// Stores the record `GNU.sparse.KEY`. `None` if it is malformed.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.version.0 = decimal(value)?,
            b"minor" => self.version.1 = decimal(value)?,
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"offset" | b"numbytes" => {
                // The two keys must alternate.
                let offset_is_next = self.numbers.len().is_multiple_of(2);
                if offset_is_next != (key == b"offset") || self.numbers.len() >= 2 * MAX_PIECES {
                    return None;
                }
                self.numbers.push(decimal(value)?);
            }
            b"map" if !value.is_empty() => {
                self.numbers = value
                    .split(|b| *b == b',')
                    .take(2 * MAX_PIECES + 1)
                    .map(|number| if number.is_empty() { None } else { decimal(number) })
                    .collect::<Option<_>>()?;
            }
            // `numblocks` is redundant: the pairs are counted.
            _ => {}
        }
        Some(())
    }

    /// The map, or its position; none for a file that is not sparse.
    pub(super) fn map(&self) -> Result<Option<PaxMap>, ArchiveError> {
        let Some(size) = self.size else { return Ok(None) };
        match self.version {
            (1, 0) => return Ok(Some(PaxMap::BeforeData(size))),
            (0, 0 | 1) => {}
            (major, minor) => {
                return Err(ArchiveError::bad(format!(
                    "its sparse format {major}.{minor} is unknown"
                )));
            }
        }
        let mut map = SparseMap { pieces: Vec::new(), size };
        let (pairs, []) = self.numbers.as_chunks::<2>() else {
            return Err(ArchiveError::bad("its sparse map ends in the middle of a pair"));
        };
        for [offset, len] in pairs {
            map.push(*offset, *len)?;
        }
        Ok(Some(PaxMap::Here(map)))
    }
}

/// Reads a map of format 1.0: decimal numbers, each ended by a newline, padded to a full block. The first is the
/// number of pairs, which follow. `next_block` returns the blocks.
pub(super) fn read_map_before_data(
    size: u64,
    mut next_block: impl FnMut() -> Result<[u8; 512], ArchiveError>,
) -> Result<SparseMap, ArchiveError> {
    let malformed = || ArchiveError::bad("its sparse map is malformed");
    let mut map = SparseMap { pieces: Vec::new(), size };
    let mut block = [0; 512].into_iter();
    block.by_ref().for_each(drop);
    let mut number = || -> Result<u64, ArchiveError> {
        let mut digits = Vec::new();
        loop {
            let byte = match block.next() {
                Some(byte) => byte,
                None => {
                    block = next_block()?.into_iter();
                    continue;
                }
            };
            match byte {
                b'\n' if !digits.is_empty() => return decimal(&digits).ok_or_else(malformed),
                b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                _ => return Err(malformed()),
            }
        }
    };
    for _ in 0..number()? {
        let (offset, len) = (number()?, number()?);
        map.push(offset, len)?;
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(size: u64, pieces: &[(u64, u64)]) -> SparseMap {
        let pieces = pieces.iter().map(|(offset, len)| Piece { offset: *offset, len: *len });
        SparseMap { pieces: pieces.collect(), size }
    }

    #[test]
    fn a_map_must_be_ordered_inside_the_file_and_complete() {
        assert!(map(100, &[(0, 10), (10, 20), (90, 10), (100, 0)]).check(40).is_ok());
        assert!(map(u64::MAX, &[]).check(0).is_ok());
        assert!(map(100, &[(10, 10), (0, 5)]).check(15).is_err());
        assert!(map(100, &[(0, 10), (5, 10)]).check(20).is_err());
        assert!(map(100, &[(95, 10)]).check(10).is_err());
        assert!(map(u64::MAX, &[(u64::MAX, u64::MAX)]).check(1).is_err());
        assert!(map(100, &[(0, 10)]).check(11).is_err());
    }

    #[test]
    fn all_pax_formats_give_the_same_map() {
        let mut v00 = PaxSparse::default();
        for (key, value) in [
            ("size", "100"),
            ("numblocks", "2"),
            ("offset", "1"),
            ("numbytes", "2"),
            ("offset", "50"),
            ("numbytes", "3"),
        ] {
            v00.set(key.as_bytes(), value.as_bytes()).unwrap();
        }
        let mut v01 = PaxSparse::default();
        for (key, value) in [("major", "0"), ("minor", "1"), ("size", "100"), ("map", "1,2,50,3")] {
            v01.set(key.as_bytes(), value.as_bytes()).unwrap();
        }
        let want = map(100, &[(1, 2), (50, 3)]);
        for sparse in [v00, v01] {
            assert!(matches!(sparse.map(), Ok(Some(PaxMap::Here(map))) if map == want));
        }
        let mut text = b"2\n1\n2\n50\n3\n".to_vec();
        text.resize(512, 0);
        let read = read_map_before_data(100, || Ok(text.as_slice().try_into().unwrap())).unwrap();
        assert_eq!(read, want);
        assert!(matches!(PaxSparse::default().map(), Ok(None)));
    }

    #[test]
    fn a_map_may_cross_blocks() {
        let pieces: Vec<_> = (0..100).map(|i| (i * 1_000_000, 4096)).collect();
        let mut text = format!("{}\n", pieces.len());
        pieces.iter().for_each(|(offset, len)| text += &format!("{offset}\n{len}\n"));
        let mut bytes = text.into_bytes();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let mut blocks = bytes.chunks(512);
        let read = read_map_before_data(1 << 40, || Ok(blocks.next().unwrap().try_into().unwrap()));
        assert_eq!(read.unwrap(), map(1 << 40, &pieces));
        assert!(blocks.next().is_none());
    }

    proptest! {
        #[test]
        fn any_text_before_data_parses_or_fails(text in "[0-9\n]{0,200}|.{0,100}") {
            let mut bytes = text.into_bytes();
            bytes.resize(1024, 0);
            let mut blocks = bytes.chunks(512);
            let _ = read_map_before_data(1, || {
                blocks.next().map(|b| b.try_into().unwrap()).ok_or(ArchiveError::Truncated)
            });
        }
    }
}
