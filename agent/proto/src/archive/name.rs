//! Names in a tar, and the paths that they mean.

use super::ArchiveError;

/// Limit on the bytes of a name in a message.
const MAX_SHOWN: usize = 200;

/// The path that a name means: without leading slashes, empty components, `.` and `..`.
pub fn normalize(name: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    let mut path = Vec::with_capacity(name.len());
    append(&mut path, name).then_some(path).ok_or_else(|| {
        ArchiveError::bad(format!("{} climbs above the root directory", shown(name)))
    })
}

/// The path that the target of a symlink in the directory `dir` means. As in the kernel, the parent of the root is
/// the root.
pub fn resolve(dir: &[u8], target: &[u8]) -> Vec<u8> {
    let mut path = if target.starts_with(b"/") { Vec::new() } else { dir.to_vec() };
    append(&mut path, target);
    path
}

/// Appends the components of a name. Returns whether the path never climbed above the root.
fn append(path: &mut Vec<u8>, name: &[u8]) -> bool {
    let mut below = true;
    for component in name.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                below &= !path.is_empty();
                let parent = split(path).0.len();
                path.truncate(parent);
            }
            component => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(component);
            }
        }
    }
    below
}

/// A normalized path's directory and last component.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// A name for messages: quoted, escaped, and bounded.
pub fn shown(name: &[u8]) -> String {
    match name.get(..MAX_SHOWN) {
        Some(start) => format!("\"{}…\"", start.escape_ascii()),
        None => format!("\"{}\"", name.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_normalized() {
        let ok = |name: &str| String::from_utf8(normalize(name.as_bytes()).unwrap()).unwrap();
        assert_eq!(ok("./usr//bin/./sh"), "usr/bin/sh");
        assert_eq!(ok("/etc/passwd"), "etc/passwd");
        assert_eq!(ok("a/../b"), "b");
        assert_eq!(ok("a/b/../../c/"), "c");
        assert_eq!((&*ok("./"), &*ok("/"), &*ok("a/..")), ("", "", ""));
        for bad in ["..", "../x", "/../x", "a/../../x", "./../x", "../a"] {
            assert!(normalize(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn symlinks_stop_at_the_root() {
        assert_eq!(resolve(b"a/b", b"c"), b"a/b/c");
        assert_eq!(resolve(b"a/b", b"../c"), b"a/c");
        assert_eq!(resolve(b"a/b", b"/c"), b"c");
        assert_eq!(resolve(b"a", b"../../../c/./d"), b"c/d");
    }

    proptest! {
        #[test]
        fn a_normalized_name_has_no_way_out(name in "[a./]{0,20}") {
            if let Ok(path) = normalize(name.as_bytes()) {
                let way_out = |c: &[u8]| matches!(c, b"" | b"." | b"..");
                prop_assert!(path.is_empty() || !path.split(|b| *b == b'/').any(way_out));
            }
        }
    }
}
