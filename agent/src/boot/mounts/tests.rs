use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

#[test]
fn volumes_are_made_where_they_are_missing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("there")).unwrap();
    std::fs::set_permissions(at("there"), PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::write(at("file"), "x").unwrap();
    symlink("there", at("link")).unwrap();
    let make = |name: &str| make_volume(at(name).to_str().unwrap().as_bytes());
    for name in ["there", "link", "link/new", "a/b/c", "a//b/./d/"] {
        make(name).unwrap();
        make(name).unwrap();
        assert!(at(name).is_dir(), "{name}");
    }
    let mode = std::fs::metadata(at("there")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(make("file"), Err(Errno::NOTDIR));
    assert_eq!(make("file/below"), Err(Errno::NOTDIR));
    assert!(make("loop\0").is_err());
}
