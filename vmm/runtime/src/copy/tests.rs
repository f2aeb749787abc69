//! Trees that are packed and unpacked again, and tars of hostile guests.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use boxlite_proto::archive::{Attributes, Device, Entry, EntryType, Time, padding};
use proptest::prelude::*;
use rustix::fs::XattrFlags;
use tempfile::{TempDir, tempdir};

use super::pack::{Packing, Source, pack};
use super::unpack::Ownership;
use super::*;

/// The tar of a path.
fn tar_of(from: &Path, archive: bool) -> (Vec<u8>, Copied) {
    let source = Source::find(from, false).unwrap();
    let mut tar = Vec::new();
    // The agent's name for a source without one.
    let name = source.name.clone().unwrap_or_else(|| b".".to_vec());
    let packing = Packing { name: Some(name), archive };
    let copied = pack(&source, &packing, &mut tar).unwrap();
    (tar, copied)
}

/// Packs and unpacks, as a copy through a box does.
fn transfer(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<Copied> {
    let source = Source::find(from.as_ref(), false)?;
    let target = target(to.as_ref(), source.is_dir, source.name.clone(), Ownership::Caller)?;
    let (tar, _) = tar_of(from.as_ref(), false);
    unpack(target, &tar[..]).map_err(unpack_error)
}

/// Unpacks a tar of the path `asked` into a directory.
fn unpack_into(dir: &Path, asked: Option<&str>, tar: &[u8]) -> Result<Copied, UnpackError> {
    let asked = asked.map(|name| name.as_bytes().to_vec());
    unpack(target(dir, true, asked, Ownership::Caller).unwrap(), tar)
}

#[derive(Clone, Debug)]
struct Item {
    kind: EntryType,
    name: String,
    link: String,
    mode: u32,
    data: Vec<u8>,
}

fn item(kind: EntryType, name: &str, link: &str) -> Item {
    let data = if kind == EntryType::Regular { b"from the guest".to_vec() } else { Vec::new() };
    Item { kind, name: name.into(), link: link.into(), mode: 0o755, data }
}

fn tar(items: &[Item]) -> Vec<u8> {
    let mut tar = Vec::new();
    for Item { kind, name, link, mode, data } in items {
        let node = matches!(kind, EntryType::Char | EntryType::Block);
        let entry = Entry {
            name: name.as_bytes(),
            kind: *kind,
            link: link.as_bytes(),
            attributes: Attributes { mode: *mode, mtime: Time::default(), uid: 0, gid: 0 },
            device: node.then_some(Device { major: 1, minor: 3 }),
            stored: data.len() as u64,
            sparse_size: None,
            xattrs: &[],
        };
        entry.write(&mut tar).unwrap();
        tar.extend_from_slice(data);
        tar.extend_from_slice(padding(data.len() as u64));
    }
    tar.extend_from_slice(&[0; 1024]);
    tar
}

/// The content of a directory: the type, mode, content and modification time of each name.
fn snapshot(dir: &Path) -> BTreeMap<Vec<u8>, (u32, Vec<u8>, i64, i64)> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let content = match metadata.file_type() {
            kind if kind.is_symlink() => path.read_link().unwrap().as_os_str().as_bytes().to_vec(),
            kind if kind.is_file() => fs::read(&path).unwrap(),
            kind if kind.is_dir() => {
                waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                Vec::new()
            }
            _ => Vec::new(),
        };
        let name = path.strip_prefix(dir).unwrap().as_os_str().as_bytes().to_vec();
        let (mode, seconds, nanoseconds) =
            (metadata.mode(), metadata.mtime(), metadata.mtime_nsec());
        all.insert(name, (mode, content, seconds, nanoseconds));
    }
    all
}

fn set_times(path: &Path, seconds: u64, nanoseconds: u32) {
    let time = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    File::open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_tree_of_all_kinds_of_files_survives_a_copy() {
    let dir = tempdir().unwrap();
    let tree = dir.path().join("tree");
    let path = |name: &str| tree.join(name);
    fs::create_dir_all(path("deep/er")).unwrap();
    fs::create_dir(path("locked")).unwrap();
    fs::write(path("file"), b"content").unwrap();
    fs::write(path("locked/empty"), b"").unwrap();
    fs::write(path("script"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(path("script"), Permissions::from_mode(0o751)).unwrap();
    fs::write(path(&"n".repeat(255)), b"long").unwrap();
    let deep = path(&format!("deep/er/{}/{}", "d".repeat(200), "e".repeat(200)));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join(OsStr::from_bytes(b"not\xff\xfeutf8\n")), b"bytes").unwrap();
    fs::hard_link(path("file"), path("deep/same")).unwrap();
    symlink("../file", path("deep/link")).unwrap();
    symlink("/nowhere/at/all", path("dangling")).unwrap();
    symlink("x".repeat(300), path("long-link")).unwrap();
    fs::write(path("exactly"), vec![7; 1 << 16]).unwrap();
    set_times(&path("file"), 1_234_567_890, 123_456_789);
    let attribute = File::open(path("script")).unwrap();
    let has_attributes =
        rustix::fs::fsetxattr(&attribute, "user.note", b"a\nb\0", XattrFlags::empty()).is_ok();
    fs::set_permissions(path("locked"), Permissions::from_mode(0o500)).unwrap();
    set_times(&path("deep"), 1_000_000_000, 1);

    let to = dir.path().join("to");
    let copied = transfer(&tree, &to).unwrap();
    assert_eq!((copied.skipped_count, copied.entries), (0, 16));
    assert_eq!(snapshot(&to), snapshot(&tree));
    let inode = |name: &str| to.join(name).metadata().unwrap().ino();
    assert_eq!(inode("file"), inode("deep/same"));
    assert_eq!(to.join("file").metadata().unwrap().mtime_nsec(), 123_456_789);
    if has_attributes {
        let mut value = [0; 16];
        let n = rustix::fs::getxattr(to.join("script"), "user.note", &mut value).unwrap();
        assert_eq!(&value[..n], b"a\nb\0");
    } else {
        println!("SKIPPED: no user attributes in the temporary directory");
    }
}

#[test]
fn special_files_are_skipped_and_named() {
    let dir = tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(tree.join("pipe")).status();
    assert!(made.unwrap().success());
    fs::write(tree.join("file"), b"x").unwrap();
    let (_, packed) = tar_of(&tree, false);
    assert_eq!(packed.skipped.len(), 1);
    assert!(packed.skipped[0].name.contains("tree/socket"));
    let copied = transfer(&tree, dir.path().join("to")).unwrap();
    assert!(copied.skipped[0].name.contains("tree/pipe"), "{copied:?}");
    assert_eq!(snapshot(&dir.path().join("to")).len(), 2);
    for special in ["pipe", "socket"] {
        let error = Source::find(&tree.join(special), false).err().unwrap();
        assert_eq!(error.kind(), crate::ErrorKind::Invalid);
    }
}

#[test]
fn ten_thousand_files() {
    let dir = tempdir().unwrap();
    let tree = dir.path().join("tree");
    for n in 0..10_000 {
        let parent = tree.join(format!("{}/{}", n % 10, n % 100));
        fs::create_dir_all(&parent).unwrap();
        fs::write(parent.join(n.to_string()), n.to_string()).unwrap();
    }
    let copied = transfer(&tree, dir.path().join("to")).unwrap();
    assert_eq!(copied.entries, 10_000 + 111);
    assert_eq!(snapshot(&dir.path().join("to")), snapshot(&tree));
}

#[test]
fn holes_do_not_travel() {
    let dir = tempdir().unwrap();
    let from = dir.path().join("sparse");
    let file = File::create(&from).unwrap();
    file.set_len(2 << 30).unwrap();
    file.write_all_at(b"middle", 1 << 30).unwrap();
    file.write_all_at(b"end", (2 << 30) - 100_003).unwrap();
    if file.metadata().unwrap().blocks() > 1 << 11 {
        println!("SKIPPED: the temporary directory's file system has no holes");
        return;
    }
    let (tar, _) = tar_of(&from, false);
    assert!(tar.len() < 1 << 20, "{} bytes", tar.len());
    let to = dir.path().join("copy");
    let copied = transfer(&from, &to).unwrap();
    let copy = File::open(&to).unwrap();
    let metadata = copy.metadata().unwrap();
    assert!(metadata.len() == 2 << 30 && metadata.blocks() < 1 << 11 && copied.bytes < 1 << 20);
    let at = |offset, len| {
        let mut bytes = vec![0; len];
        copy.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    };
    assert_eq!(at(1 << 30, 7), b"middle\0");
    assert_eq!(at((2 << 30) - 100_003, 4), b"end\0");
}

#[test]
fn other_programs_read_it() {
    let dir = tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("d".repeat(150))).unwrap();
    let file = File::create(tree.join("sparse")).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(b"data", 1 << 19).unwrap();
    fs::write(tree.join("d".repeat(150)).join("file"), b"x").unwrap();
    symlink("sparse", tree.join("link")).unwrap();
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    let (tar, _) = tar_of(&tree, false);
    let mut command = std::process::Command::new("tar");
    command.args(["-xf", "-", "-C"]).arg(&to).stdin(std::process::Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        println!("SKIPPED: no tar here");
        return;
    };
    child.stdin.take().unwrap().write_all(&tar).unwrap();
    assert!(child.wait().unwrap().success());
    let without_links = |dir: &Path| {
        let mut all = snapshot(dir);
        // Some versions of GNU tar drop the fraction of a second of a symlink.
        all.remove(&b"link"[..]);
        all
    };
    assert_eq!(without_links(&to.join("tree")), without_links(&tree));
}

#[test]
fn destinations_follow_docker() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("tree/sub")).unwrap();
    fs::write(path("tree/sub/file"), b"new").unwrap();
    fs::write(path("file"), b"file").unwrap();
    fs::create_dir(path("there")).unwrap();
    symlink("there", path("to-there")).unwrap();

    transfer(path("file"), path("renamed")).unwrap();
    transfer(path("file"), path("there")).unwrap();
    transfer(path("file"), path("there/./")).unwrap();
    assert_eq!(fs::read(path("renamed")).unwrap(), b"file");
    assert_eq!(fs::read(path("there/file")).unwrap(), b"file");
    transfer(path("tree"), path("to-there")).unwrap();
    assert_eq!(fs::read(path("there/tree/sub/file")).unwrap(), b"new");
    transfer(path("tree/."), path("there")).unwrap();
    assert_eq!(fs::read(path("there/sub/file")).unwrap(), b"new");
    transfer(path("tree/."), path("fresh/")).unwrap();
    assert_eq!(fs::read(path("fresh/sub/file")).unwrap(), b"new");

    // Through a symlink at the end, also a dangling one.
    symlink("pointed-at", path("pointer")).unwrap();
    transfer(path("file"), path("pointer")).unwrap();
    assert!(path("pointer").is_symlink() && fs::read(path("pointed-at")).unwrap() == b"file");
    // The symlink itself, if it is the source.
    transfer(path("to-there"), path("link-copy")).unwrap();
    assert_eq!(path("link-copy").read_link().unwrap(), Path::new("there"));

    let kind = |from: &str, to: &str| transfer(path(from), path(to)).unwrap_err().kind();
    assert_eq!(kind("file", "nowhere/"), crate::ErrorKind::Invalid);
    assert_eq!(kind("file", "no/where"), crate::ErrorKind::NotFound);
    assert_eq!(kind("nothing", "there"), crate::ErrorKind::NotFound);
    assert_eq!(kind("tree", "file"), crate::ErrorKind::Invalid);
    assert_eq!(kind("file/", "there"), crate::ErrorKind::Storage);
    // A directory has replaced the file, and a file the directory.
    fs::create_dir(path("there/renamed")).unwrap();
    assert_eq!(kind("renamed", "there"), crate::ErrorKind::Invalid);
    fs::write(path("fresh/tree"), b"").unwrap();
    assert_eq!(kind("tree", "fresh"), crate::ErrorKind::Invalid);
    assert!(target(Path::new(""), true, None, Ownership::Caller).is_err());
    symlink("circle", path("circle")).unwrap();
    assert!(transfer(path("file"), path("circle")).is_err());
}

#[test]
fn symlinks_at_the_source_are_followed_when_asked() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("file"), b"x").unwrap();
    symlink("file", dir.path().join("link")).unwrap();
    let source = Source::find(&dir.path().join("link"), true).unwrap();
    let mut tar = Vec::new();
    pack(&source, &Packing { name: source.name.clone(), archive: false }, &mut tar).unwrap();
    unpack_into(&dir.path().join("to"), Some("link"), &tar).unwrap();
    let metadata = dir.path().join("to").symlink_metadata().unwrap();
    assert!(metadata.is_file() && metadata.len() == 1);
}

#[test]
fn an_incomplete_file_never_has_its_name() {
    let dir = tempdir().unwrap();
    let from = dir.path().join("file");
    fs::write(&from, vec![1; 300_000]).unwrap();
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("file"), b"old").unwrap();
    let (tar, _) = tar_of(&from, false);
    for len in [tar.len() / 2, 512, 700] {
        let error = unpack_into(&to, Some("file"), &tar[..len]).unwrap_err();
        assert!(matches!(error.problem, Problem::Archive(_)));
        assert_eq!(fs::read(to.join("file")).unwrap(), b"old");
        assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    }
}

/// A destination, and files beside it that must not change.
fn playground() -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let to = dir.path().join("to");
    fs::create_dir_all(to.join("a")).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/secret"), b"secret").unwrap();
    fs::write(dir.path().join("secret"), b"secret").unwrap();
    symlink("../outside", to.join("out")).unwrap();
    symlink(dir.path().join("outside"), to.join("a/out")).unwrap();
    (dir, to)
}

/// All files but the destination.
fn outside(dir: &TempDir) -> BTreeMap<Vec<u8>, (u32, Vec<u8>, i64, i64)> {
    let mut all = snapshot(dir.path());
    all.retain(|name, _| !name.starts_with(b"to/") && *name != b"to" && !name.is_empty());
    all
}

#[test]
fn hostile_tars_are_refused() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let (dir, to) = playground();
    let before = outside(&dir);
    let refused = |items: &[Item]| {
        let result = unpack_into(&to, None, &tar(items));
        assert!(result.is_err(), "{items:?}");
        result.unwrap_err().to_string()
    };
    for name in ["../evil", "/evil", "a/../../evil", "..", "out/evil", "a/out/evil", "b/c"] {
        for kind in [Regular, Directory, Symlink, Link] {
            if name == "b/c" || kind != Link {
                refused(&[item(kind, name, "out")]);
            }
        }
    }
    let message = refused(&[item(Symlink, "s", "/etc"), item(Regular, "s/passwd", "")]);
    assert!(message.contains("s/passwd") && message.contains("symlink"), "{message}");
    for target in ["../secret", "/secret", "out/secret", "a/out/secret", "nothing", "a"] {
        refused(&[item(Link, "l", target)]);
    }
    refused(&[item(Directory, "out", "")]);
    refused(&[item(Regular, "a", "")]);
    refused(&[item(Regular, ".", "")]);
    // Names beside the requested one.
    for name in [".bashrc", "askedd", "../asked", "."] {
        let tar = tar(&[item(Regular, name, "")]);
        assert!(unpack_into(&to, Some("asked"), &tar).is_err(), "{name}");
    }
    assert_eq!(outside(&dir), before);
    let left = snapshot(&to);
    assert!(!left.keys().any(|name| name.windows(13).any(|part| part == b".boxlite-copy")));
}

#[test]
fn setuid_setgid_and_sticky_bits_are_dropped() {
    let (_dir, to) = playground();
    let mut items = vec![
        item(EntryType::Regular, "suid", ""),
        item(EntryType::Directory, "sgid/", ""),
        item(EntryType::Char, "null", ""),
        item(EntryType::Block, "disk", ""),
        item(EntryType::Fifo, "pipe", ""),
    ];
    items.iter_mut().for_each(|item| item.mode = 0o7755);
    let copied = unpack_into(&to, None, &tar(&items)).unwrap();
    assert_eq!(copied.skipped_count, 3);
    assert_eq!(to.join("suid").metadata().unwrap().mode() & 0o7777, 0o755);
    assert_eq!(to.join("sgid").metadata().unwrap().mode() & 0o7777, 0o755);
    assert!(!to.join("null").exists() && !to.join("disk").exists() && !to.join("pipe").exists());
}

#[test]
fn existing_directories_are_not_changed() {
    let (_dir, to) = playground();
    fs::set_permissions(to.join("a"), Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(&to, Permissions::from_mode(0o700)).unwrap();
    let mut items = [item(EntryType::Directory, "./", ""), item(EntryType::Directory, "a/", "")];
    items.iter_mut().for_each(|item| item.mode = 0o777);
    unpack_into(&to, None, &tar(&items)).unwrap();
    for path in [&to, &to.join("a")] {
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o700);
    }
}

#[test]
fn the_list_of_skipped_entries_is_bounded() {
    let (_dir, to) = playground();
    let items = vec![item(EntryType::Fifo, "pipe", ""); 1000];
    let copied = unpack_into(&to, None, &tar(&items)).unwrap();
    assert_eq!((copied.skipped.len(), copied.skipped_count), (MAX_SKIPPED, 1000));
}

fn any_item() -> impl Strategy<Value = Item> {
    let kinds = [
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Fifo,
        EntryType::Char,
    ];
    let name = "(/|\\./|\\.\\./)?(a|b|c|out|\\.\\.)(/(a|b|c|out|secret|\\.\\.|\\.)){0,3}/?";
    (prop::sample::select(kinds.to_vec()), name, name, 0..0o10000_u32)
        .prop_map(|(kind, name, link, mode)| Item { mode, ..item(kind, &name, &link) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_escapes_the_destination(
        items in prop::collection::vec(any_item(), 1..12),
        asked in prop::option::of("a|b|out"),
    ) {
        let (dir, to) = playground();
        let before = outside(&dir);
        // A refused entry ends a tar, so each entry is tried in a tar of its own, on the result of the others.
        for item in &items {
            let _ = unpack_into(&to, asked.as_deref(), &tar(std::slice::from_ref(item)));
        }
        let _ = unpack_into(&to, asked.as_deref(), &tar(&items));
        prop_assert_eq!(outside(&dir), before);
        let inside = snapshot(&to);
        for (name, (mode, ..)) in inside {
            let kind = rustix::fs::FileType::from_raw_mode(mode as _);
            prop_assert!(kind.is_dir() || kind.is_file() || kind.is_symlink());
            prop_assert!(kind.is_symlink() || mode & 0o7000 == 0, "{}", name.escape_ascii());
            prop_assert!(!name.windows(13).any(|part| part == b".boxlite-copy"));
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_a_tar(bytes: Vec<u8>, cut in 0..4096_usize, flip in 0..4096_usize) {
        let (_dir, to) = playground();
        let _ = unpack_into(&to, None, &bytes);
        let mut tar = tar(&[
            item(EntryType::Directory, "a", ""),
            item(EntryType::Regular, "a/b", ""),
            item(EntryType::Symlink, "c", "a"),
        ]);
        if let Some(byte) = tar.get_mut(flip) {
            *byte = byte.wrapping_add(1);
        }
        tar.truncate(cut);
        let _ = unpack_into(&to, None, &tar);
    }
}
