//! Tests of the index of a tar: links, extensions, damage.

use super::*;
use proptest::prelude::*;
use std::io::Write;

fn index_of(bytes: &[u8]) -> io::Result<TarIndex> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    TarIndex::scan(&file, bytes.len() as u64)
}

fn sample() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).unwrap();
    };
    add("a/layer.tar", b"first");
    add(&format!("{}/long", "n".repeat(150)), b"long");
    add("manifest.json", b"[]");
    for (path, target, kind) in [
        ("b/layer.tar", "../a/layer.tar", EntryType::Symlink),
        ("c", "a/layer.tar", EntryType::Link),
        ("out", "../../etc/passwd", EntryType::Symlink),
        ("loop", "loop", EntryType::Symlink),
    ] {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, path, target).unwrap();
    }
    let pax_path = "p".repeat(300);
    builder.append_pax_extensions([("path", pax_path.as_bytes()), ("size", b"3")]).unwrap();
    let mut header = Header::new_ustar();
    header.set_path("short").unwrap();
    header.set_size(0);
    header.set_cksum();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(header.as_bytes());
    bytes.extend(b"pax");
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    bytes
}

#[test]
fn members_are_found_over_links_and_extensions() {
    let bytes = sample();
    let index = index_of(&bytes).unwrap();
    let content = |path: &str| {
        let (start, len) = index.find(path)?;
        Some(bytes[start as usize..][..len as usize].to_vec())
    };
    for path in ["a/layer.tar", "./a//layer.tar", "b/layer.tar", "c", "/c"] {
        assert_eq!(content(path).as_deref(), Some(&b"first"[..]), "{path}");
    }
    assert_eq!(content(&format!("{}/long", "n".repeat(150))).as_deref(), Some(&b"long"[..]));
    assert_eq!(content(&"p".repeat(300)).as_deref(), Some(&b"pax"[..]));
    for path in ["out", "loop", "a", "none", "../c", "short"] {
        assert_eq!(content(path), None, "{path}");
    }
}

#[test]
fn a_cut_off_archive_is_noticed() {
    let bytes = sample();
    assert!(index_of(&bytes[..514]).is_err());
    assert!(index_of(&bytes[..515]).is_err());
    assert!(index_of(b"no tar at all").is_err());
    assert!(index_of(&[b'x'; 1024]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn damage_never_panics(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20), fix in any::<bool>()) {
        let mut bytes = sample();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if fix {
            // A header that was meant to be so: its checksum is right.
            let mut header = Header::from_byte_slice(&bytes[..512]).clone();
            header.set_cksum();
            bytes[..512].copy_from_slice(header.as_bytes());
        }
        if let Ok(index) = index_of(&bytes) {
            for path in index.members.keys() {
                if let Some((start, len)) = index.find(path) {
                    prop_assert!(start + len <= bytes.len() as u64);
                }
            }
        }
    }

    #[test]
    fn pax_records_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        prop_assert!(PaxRecords(&bytes).count() <= bytes.len());
    }
}
