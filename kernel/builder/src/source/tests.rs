//! Tests of sources that need no network: those the caller gives, and the cache.

use std::os::unix::fs::symlink;

use super::*;

const MAKEFILE: &str = "# SPDX-License-Identifier: GPL-2.0\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 9\nEXTRAVERSION =\nNAME = x\n";

fn tree(dir: &Path) -> PathBuf {
    let tree = dir.join("linux-6.12.9");
    fs::create_dir_all(tree.join("arch/x86")).unwrap();
    fs::write(tree.join("Makefile"), MAKEFILE).unwrap();
    fs::write(tree.join("arch/x86/Makefile"), "not this one").unwrap();
    symlink("nowhere", tree.join("link")).unwrap();
    tree
}

fn tarball(dir: &Path) -> PathBuf {
    let file = dir.join("linux.tar.xz");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(dir).arg("-cJf").arg(&file).arg("linux-6.12.9");
    command::output(&mut tar).unwrap();
    file
}

#[test]
fn a_given_folder_and_a_given_tarball_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(dir.path());
    let folder = Source::given(&tree, Lts::V6_12).unwrap();
    assert_eq!(folder.info.version, "6.12.9");
    assert!(matches!(folder.location, Location::Tree(_)));
    let archive = Source::given(&tarball(dir.path()), Lts::V6_12).unwrap();
    assert_eq!(archive.info.version, "6.12.9");
    assert!(!archive.info.pinned);

    let wrong = Source::given(&tree, Lts::V6_1).unwrap_err().to_string();
    assert!(wrong.contains("this is Linux 6.12.9, not of series 6.1"), "{wrong}");
}

#[test]
fn a_changed_folder_is_another_source() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(dir.path());
    let before = fingerprint(&tree).unwrap();
    assert_eq!(fingerprint(&tree).unwrap(), before);
    fs::write(tree.join("arch/x86/Makefile"), "changed").unwrap();
    assert_ne!(fingerprint(&tree).unwrap(), before);
}

#[test]
fn what_is_no_kernel_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes.txt");
    fs::write(&file, "hello").unwrap();
    assert!(Source::given(&file, Lts::V6_12).is_err());
    assert!(Source::given(&dir.path().join("absent"), Lts::V6_12).is_err());
    fs::write(dir.path().join("Makefile"), "all:\n").unwrap();
    let error = Source::given(dir.path(), Lts::V6_12).unwrap_err().to_string();
    assert!(error.contains("not a kernel source"), "{error}");
}

#[test]
fn only_a_described_tarball_counts_as_cached() {
    let dir = tempfile::tempdir().unwrap();
    let put = |version: &str, sha256: &str| {
        let file = dir.path().join("download");
        fs::write(&file, "x").unwrap();
        let info = SourceInfo {
            version: version.to_owned(),
            origin: "test".to_owned(),
            sha256: sha256.to_owned(),
            pinned: false,
        };
        store(dir.path(), &file, info).unwrap()
    };
    assert!(cached(dir.path(), Lts::V6_12).is_none());
    fs::write(dir.path().join("linux-6.12.1.tar.xz"), "interrupted").unwrap();
    assert!(cached(dir.path(), Lts::V6_12).is_none());

    put("6.12.200-1", "00");
    put("6.1.5", "11");
    assert_eq!(cached(dir.path(), Lts::V6_12).unwrap().info.version, "6.12.200-1");
    let pins = Lts::V6_12.pins();
    put(pins.kernel_org.version, pins.kernel_org.sha256);
    let source = cached(dir.path(), Lts::V6_12).unwrap();
    assert_eq!((source.info.version.as_str(), source.info.pinned), (pins.kernel_org.version, true));
}
