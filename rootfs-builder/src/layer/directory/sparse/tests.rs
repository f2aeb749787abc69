//! Tests of the map of a sparse file.

use super::*;

#[test]
fn data_between_holes_is_found() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(10 << 20).unwrap();
    file.write_all_at(b"x", (3 << 20) + 5).unwrap();
    file.write_all_at(&[0; 4096], 5 << 20).unwrap();
    file.write_all_at(b"end", (10 << 20) - 3).unwrap();
    file.sync_all().unwrap();
    let segments = map(&file, &file.metadata().unwrap()).unwrap().unwrap();
    assert_eq!(
        segments,
        [
            Segment { start: 3 << 20, len: BLOCK },
            Segment { start: (10 << 20) - BLOCK, len: BLOCK },
            Segment { start: 10 << 20, len: 0 },
        ]
    );
}

#[test]
fn dense_and_small_files_have_none() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MIN_LEN - 1).unwrap();
    assert_eq!(map(&file, &file.metadata().unwrap()).unwrap(), None);
    file.write_all_at(&vec![1; 2 << 20], 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(map(&file, &file.metadata().unwrap()).unwrap(), None);
}
