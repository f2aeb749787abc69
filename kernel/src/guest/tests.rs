//! Tests of the manifest and the search for guest files.

use super::*;

fn source() -> SourceInfo {
    SourceInfo {
        version: "6.12.64".to_owned(),
        origin: "test".to_owned(),
        sha256: "00".to_owned(),
        pinned: true,
    }
}

/// A folder of small guest files.
fn make(dir: &Path, arch: Arch) {
    fs::create_dir_all(dir).unwrap();
    for name in Manifest::names(arch) {
        fs::write(dir.join(name), format!("{arch} {name}")).unwrap();
    }
    let manifest = Manifest::describe(dir, arch, "6.12.64-boxlite", source(), "0.1.0").unwrap();
    fs::write(dir.join(MANIFEST_FILE), manifest.to_json()).unwrap();
}

#[test]
fn the_first_place_with_files_of_the_architecture_wins() {
    let root = tempfile::tempdir().unwrap();
    let place = |name: &str| root.path().join(name);
    make(&place("arm"), Arch::Aarch64);
    make(&place("both"), Arch::X86_64);
    make(&place("both/aarch64"), Arch::Aarch64);
    let locate = |arch, names: &[&str]| {
        GuestFiles::locate_in(arch, names.iter().map(|name| place(name))).map(|files| files.dir)
    };

    assert_eq!(locate(Arch::X86_64, &["absent", "arm", "both"]).unwrap(), place("both"));
    assert_eq!(locate(Arch::Aarch64, &["both", "arm"]).unwrap(), place("both/aarch64"));
    let files = GuestFiles::locate_in(Arch::X86_64, [place("both")]).unwrap();
    assert_eq!(fs::read_to_string(&files.kernel).unwrap(), "x86_64 vmlinux");
    files.verify().unwrap();
}

#[test]
fn not_found_lists_every_searched_folder() {
    let root = tempfile::tempdir().unwrap();
    let places = ["one", "two"].map(|name| root.path().join(name));
    let error = GuestFiles::locate_in(Arch::X86_64, places.clone()).unwrap_err().to_string();
    for place in places {
        for folder in [place.join("x86_64"), place] {
            assert!(error.lines().any(|line| Path::new(line.trim()) == folder), "{error}");
        }
    }
}

#[test]
fn a_truncated_file_is_seen_at_once_and_a_changed_one_by_verify() {
    let root = tempfile::tempdir().unwrap();
    make(root.path(), Arch::X86_64);
    let kernel = root.path().join("vmlinux");
    let good = fs::read(&kernel).unwrap();

    let mut changed = good.clone();
    changed[0] ^= 1;
    fs::write(&kernel, changed).unwrap();
    let files = GuestFiles::open(root.path()).unwrap();
    let error = files.verify().unwrap_err().to_string();
    assert!(error.contains("vmlinux is damaged: SHA-256"), "{error}");

    fs::write(&kernel, &good[1..]).unwrap();
    let error = GuestFiles::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("vmlinux is damaged: size is 13, its manifest says 14"), "{error}");

    fs::remove_file(&kernel).unwrap();
    let error = GuestFiles::locate_in(Arch::X86_64, [root.path().to_owned()]).unwrap_err();
    assert!(matches!(&error, LocateError::Io { path, .. } if *path == kernel), "{error:?}");
}

#[test]
fn a_manifest_that_is_none_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    make(root.path(), Arch::X86_64);
    let path = root.path().join(MANIFEST_FILE);
    let good = fs::read_to_string(&path).unwrap();
    let refused = |text: &str| {
        fs::write(&path, text).unwrap();
        GuestFiles::locate_in(Arch::X86_64, [root.path().to_owned()]).unwrap_err().to_string()
    };
    assert!(refused("").contains("manifest.json"));
    assert!(refused("{}").contains("missing field"));
    let newer = refused(&good.replace("\"format\": 1", "\"format\": 2"));
    assert!(newer.contains("its format is 2, this version reads 1"), "{newer}");
    let lacking = refused(&good.replace("initramfs.cpio", "other"));
    assert!(lacking.contains("does not describe initramfs.cpio"), "{lacking}");
    assert!(refused(&" ".repeat(100_000)).contains("too large"));
}
