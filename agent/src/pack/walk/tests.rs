use std::os::unix::fs::{FileExt, MetadataExt};

use super::*;

#[test]
fn entries_are_named_by_the_last_component() {
    for (path, name) in [
        ("/", "."),
        ("//", "."),
        ("/etc", "etc"),
        ("/etc/", "etc"),
        ("/etc/hosts", "hosts"),
        ("/etc/.", "."),
        ("/etc/./", "."),
        ("/etc/..", "."),
        ("/etc/...", "..."),
    ] {
        assert_eq!(last_component(path.as_bytes()), name.as_bytes(), "{path}");
    }
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
    let file = OwnedFd::from(file);
    let pieces = holes::pieces(8 << 20, blocks, |at| next_data(&file, at)).unwrap();
    let total: u64 = pieces.iter().map(|piece| piece.len).sum();
    assert!(pieces.len() == 2 && (8192..1 << 20).contains(&total), "{pieces:?}");
    assert!(pieces[0].offset <= 1 << 20 && pieces[0].offset + pieces[0].len > 1 << 20);
}
