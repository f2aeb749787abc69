//! Copies into and out of a live tree, with the agent's functions. Needs root, as the agent does.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use boxlite_agent::pack::pack;
use boxlite_agent::unpack::{Unpacked, unpack_below};
use boxlite_proto::guest::{CopyIn, CopyOut, Owner};
use boxlite_proto::message::{Failure, FailureKind};
use proptest::collection::vec;
use proptest::prelude::*;
use tar::EntryType;

use self::common::{Layer, default_acl, describe, needs_root, tree_of_everything};

/// Runs `work` in a thread of its own, whose working directory changes.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

fn path(path: &Path) -> Vec<u8> {
    path.to_str().unwrap().into()
}

fn copy_in(to: &Path, tar: &[u8]) -> Result<Unpacked, Failure> {
    let request = CopyIn { path: path(to), ..CopyIn::default() };
    apart(|| unpack_below(&request, tar))
}

fn copy_out(from: impl AsRef<Path>) -> Result<Vec<u8>, Failure> {
    copy_out_of(CopyOut { path: path(from.as_ref()), follow: false })
}

fn copy_out_of(request: CopyOut) -> Result<Vec<u8>, Failure> {
    let mut tar = Vec::new();
    apart(|| pack(&request, &mut tar)).map_err(|e| e.failure())?;
    Ok(tar)
}

/// The names in a tar, as GNU tar has them.
fn listed(tar: &[u8]) -> Vec<String> {
    let output = gnu_tar(&["-tf", "-"], tar);
    String::from_utf8(output).unwrap().lines().map(str::to_owned).collect()
}

fn gnu_tar(arguments: &[&str], tar: &[u8]) -> Vec<u8> {
    let mut child = Command::new("tar")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("GNU tar");
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(tar).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn a_tree_of_everything_goes_out_and_in_again() {
    needs_root!();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap();
    tree_of_everything(from.path());
    let tar = copy_out(from.path().join(".")).unwrap();
    assert!(tar.len() < 2 << 20, "holes travel: {} bytes", tar.len());
    fs::remove_file(from.path().join("socket")).unwrap();
    // The removal has changed the time of the tree itself.
    let time = rustix::fs::Timespec { tv_sec: 1_500_000_000, tv_nsec: 5 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, from.path(), &times, rustix::fs::AtFlags::empty())
        .unwrap();
    let want = describe(from.path());
    let unpacked = copy_in(to.path(), &tar).unwrap();
    assert_eq!(unpacked.entries, want.len() as u64);
    let got = describe(to.path());
    for (path, want) in &want {
        assert_eq!(got.get(path), Some(want), "{}", path.display());
    }
    assert_eq!(got.len(), want.len());
    for name in ["sparse", "hole"] {
        let blocks = |root: &Path| fs::metadata(root.join(name)).unwrap().blocks();
        assert!(blocks(to.path()) <= blocks(from.path()) + 16, "{name}: holes were written");
    }
    // A second copy over the first changes nothing, and nothing fails.
    copy_in(to.path(), &tar).unwrap();
    assert_eq!(describe(to.path()), got);
}

/// A file with any metadata that a tar can hold.
#[derive(Debug)]
struct AnyFile {
    name: Vec<u8>,
    content: Vec<u8>,
    owner: (u32, u32),
    mode: u32,
    time: (i64, i64),
    note: Vec<u8>,
    /// Of a symlink beside it.
    target: Vec<u8>,
}

fn any_file() -> impl Strategy<Value = AnyFile> {
    let byte = (1..=255_u8).prop_filter("no slash", |b| *b != b'/');
    let bytes = move |len| vec(byte.clone(), len);
    let numbers = (0..u32::MAX, 0..u32::MAX, 0..0o10000_u32);
    let time = (-2_000_000_000..8_000_000_000_i64, 0..1_000_000_000_i64);
    (
        bytes(1..240),
        vec(any::<u8>(), 0..2000),
        numbers,
        time,
        vec(any::<u8>(), 1..300),
        bytes(1..400),
    )
        .prop_map(|(name, content, (uid, gid, mode), time, note, target)| AnyFile {
            name: [b"n", &name[..]].concat(),
            content,
            owner: (uid, gid),
            mode,
            time,
            note,
            target,
        })
}

fn make(root: &Path, file: &AnyFile) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, lsetxattr, utimensat};
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let path = root.join(OsStr::from_bytes(&file.name));
    fs::write(&path, &file.content).unwrap();
    let link = root.join(OsStr::from_bytes(&[b"l", &file.name[..]].concat()));
    symlink(OsStr::from_bytes(&file.target), &link).unwrap();
    let (tv_sec, tv_nsec) = file.time;
    let time = Timespec { tv_sec, tv_nsec };
    for path in [&path, &link] {
        std::os::unix::fs::lchown(path, Some(file.owner.0), Some(file.owner.1)).unwrap();
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(file.mode)).unwrap();
    lsetxattr(&path, "user.note", &file.note, XattrFlags::empty()).unwrap();
    let times = Timestamps { last_access: time, last_modification: time };
    for path in [&path, &link] {
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_files_go_out_and_in_again(files in vec(any_file(), 0..6)) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return Ok(());
        }
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        files.iter().for_each(|file| make(from.path(), file));
        let tar = copy_out(from.path().join(".")).unwrap();
        copy_in(to.path(), &tar).unwrap();
        prop_assert_eq!(describe(to.path()), describe(from.path()));
    }

    /// Damages bytes anywhere in a tar, in its metadata, too.
    #[test]
    fn damaged_tars_neither_panic_nor_write_outside(seed: Vec<(prop::sample::Index, u8)>) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return Ok(());
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut tar = Layer::new()
            .pax(&[("SCHILY.xattr.user.note", b"x"), ("mtime", b"1.5")])
            .file("dir/file", &[1; 600])
            .symlink("dir/link", "../..")
            .file("dir/link/x", b"x")
            .done();
        for (index, byte) in seed {
            let at = index.index(tar.len());
            tar[at] = byte;
        }
        let _ = copy_in(&root, &tar);
        let beside: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        prop_assert_eq!(beside.len(), 1);
    }
}

#[test]
fn gnu_tar_reads_a_packed_tree() {
    needs_root!();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree_of_everything(from.path());
    let tar = copy_out(from.path().join(".")).unwrap();
    let to_path = to.path().to_str().unwrap();
    gnu_tar(
        &["-C", to_path, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", "-"],
        &tar,
    );
    let (want, mut got) = (describe(from.path()), describe(to.path()));
    // GNU tar rounds times before the epoch another way.
    got.insert("exact-block".into(), want[Path::new("exact-block")].clone());
    for (path, want) in &want {
        assert_eq!(got.get(path), Some(want), "{}", path.display());
    }
}

#[test]
fn entries_are_named_by_the_requested_path() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("tree/sub")).unwrap();
    fs::write(at("tree/sub/file"), b"x").unwrap();
    symlink("tree/sub", at("link")).unwrap();
    symlink("tree/sub/file", at("file-link")).unwrap();
    let names = |name: &str, follow| {
        let path = [&path(dir.path())[..], b"/", name.as_bytes()].concat();
        listed(&copy_out_of(CopyOut { path, follow }).unwrap())
    };
    assert_eq!(names("tree", false), ["tree/", "tree/sub/", "tree/sub/file"]);
    assert_eq!(names("tree/", false), ["tree/", "tree/sub/", "tree/sub/file"]);
    assert_eq!(names("tree/.", false), ["./", "./sub/", "./sub/file"]);
    assert_eq!(names("tree/sub/..", false), ["./", "./sub/", "./sub/file"]);
    assert_eq!(names("tree/sub/file", false), ["file"]);
    assert_eq!(names("link", false), ["link"]);
    assert_eq!(names("link", true), ["link/", "link/file"]);
    assert_eq!(names("link/.", false), ["./", "./file"]);
    assert_eq!(names("link/file", false), ["file"]);
    let tar = copy_out_of(CopyOut { path: path(&at("file-link")), follow: true }).unwrap();
    assert_eq!(gnu_tar(&["-xOf", "-", "file-link"], &tar), b"x");
    for (path, kind) in [
        (at("missing"), FailureKind::NoSuchPath),
        (at("tree/sub/file/x"), FailureKind::NotADirectory),
        ("/proc/version".into(), FailureKind::Other),
        ("/proc".into(), FailureKind::Other),
    ] {
        let failure = copy_out(&path).unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(path.to_str().unwrap()), "{failure}");
    }
}

#[test]
fn ten_thousand_files_go_out_and_in_again() {
    needs_root!();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for i in 0..10_000 {
        let dir = from.path().join(format!("d{}", i % 100));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file-{i}")), format!("{i}\n")).unwrap();
    }
    let tar = copy_out(from.path().join(".")).unwrap();
    let unpacked = copy_in(to.path(), &tar).unwrap();
    let bytes = (0..10_000).map(|i: u32| i.to_string().len() as u64 + 1).sum();
    assert_eq!(unpacked, Unpacked { entries: 10_101, bytes });
    assert_eq!(describe(to.path()), describe(from.path()));
}

#[test]
fn a_sparse_file_of_two_gigabytes_is_sent_without_its_holes() {
    needs_root!();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = fs::File::create(from.path().join("disk.img")).unwrap();
    file.set_len(2 << 30).unwrap();
    for (offset, byte) in [(0, 1), (1 << 30, 2), ((2 << 30) - 100, 3)] {
        file.write_all_at(&[byte; 100], offset).unwrap();
    }
    if file.metadata().unwrap().blocks() > 2048 {
        eprintln!("SKIPPED: the temporary directory's file system has no holes");
        return;
    }
    let tar = copy_out(from.path().join("disk.img")).unwrap();
    assert!(tar.len() < 1 << 20, "{}", tar.len());
    copy_in(to.path(), &tar).unwrap();
    let copy = fs::File::open(to.path().join("disk.img")).unwrap();
    let meta = copy.metadata().unwrap();
    assert!(meta.len() == 2 << 30 && meta.blocks() <= 2048, "{} blocks", meta.blocks());
    for (offset, want) in [(0, 1), (100, 0), (1 << 30, 2), ((2 << 30) - 1, 3), ((2 << 30) - 101, 0)]
    {
        let mut byte = [9];
        copy.read_exact_at(&mut byte, offset).unwrap();
        assert_eq!(byte, [want], "at {offset}");
    }
    // GNU tar sees the same file.
    let length = gnu_tar(&["--to-command=wc -c", "-xf", "-"], &tar);
    assert_eq!(String::from_utf8(length).unwrap().trim(), (2_u64 << 30).to_string());
}

#[test]
fn kernel_file_systems_are_not_packed() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    for name in ["proc", "tmpfs"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        let at = dir.path().join(name);
        let flags = rustix::mount::MountFlags::empty();
        if let Err(e) = rustix::mount::mount(name, &at, name, flags, None) {
            eprintln!("SKIPPED: cannot mount {name}: {e}");
            return;
        }
    }
    fs::write(dir.path().join("tmpfs/file"), b"x").unwrap();
    let names = copy_out(dir.path().join(".")).map(|tar| listed(&tar));
    for name in ["proc", "tmpfs"] {
        let at = dir.path().join(name);
        rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    let mut names = names.unwrap();
    names.sort();
    assert_eq!(names, ["./", "./proc/", "./tmpfs/", "./tmpfs/file"]);
}

#[test]
fn a_tree_that_changes_is_packed_whole() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir(root.join("tree")).unwrap();
    fs::write(root.join("secret"), b"outside").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let size = (i * 7919) % 300_000;
                let _ = fs::write(root.join("tree/growing"), vec![b'g'; size as usize]);
                let _ = fs::create_dir_all(root.join("tree/dir"));
                let _ = fs::write(root.join("tree/dir/file"), b"x");
                let _ = fs::remove_dir_all(root.join("tree/dir"));
                // A directory becomes a symlink out of the tree.
                let _ = symlink(root, root.join("tree/dir"));
                let _ = fs::remove_file(root.join("tree/dir"));
            }
        });
        for _ in 0..200 {
            let tar = copy_out(root.join("tree")).unwrap();
            let names = listed(&tar);
            assert!(names.iter().all(|name| name.starts_with("tree/")), "{names:?}");
            assert!(!names.iter().any(|name| name.contains("secret")), "{names:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn existing_entries_are_replaced_as_by_tar() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("full/inside")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("file"), b"old").unwrap();
    fs::hard_link(at("file"), at("alias")).unwrap();
    fs::create_dir(at("real")).unwrap();
    symlink("real", at("link")).unwrap();
    symlink("/etc/passwd", at("out")).unwrap();
    let tar = Layer::new()
        .file("file", b"new")
        .file("empty", b"a file now")
        .file("out", b"not through the link")
        .file("link/new", b"through the link")
        .dir("full")
        .file("full/added", b"x")
        .file(".wh.full", b"an ordinary name")
        .file("full/.wh..wh..opq", b"")
        .done();
    copy_in(root, &tar).unwrap();
    let read = |name: &str| fs::read(at(name)).unwrap();
    assert_eq!((read("file"), read("alias")), (b"new".to_vec(), b"old".to_vec()));
    assert_eq!(read("empty"), b"a file now");
    assert_eq!(read("out"), b"not through the link");
    assert_eq!(read("real/new"), b"through the link");
    assert!(at("full/inside").exists() && at("full/added").exists());
    assert_eq!(read(".wh.full"), b"an ordinary name");
    assert!(at("full/.wh..wh..opq").exists());
    let failure = copy_in(root, &Layer::new().file("full", b"x").done()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::BadArchive, "{failure}");
    assert!(failure.message.contains("full") && failure.message.contains("not empty"), "{failure}");
    assert!(at("full/inside").exists());
}

#[test]
fn unsupported_attributes_are_left_out_and_default_acls_inherited() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let acl = default_acl();
    let key = "system.posix_acl_default";
    let set = rustix::fs::lsetxattr(dir.path(), key, &acl, rustix::fs::XattrFlags::empty());
    let apple = [("SCHILY.xattr.com.apple.provenance", &b"\x01"[..])];
    let tar = Layer::new().pax(&apple).file("d/file", b"x").done();
    copy_in(dir.path(), &tar).unwrap();
    let all = describe(dir.path());
    let file = &all[Path::new("d/file")];
    assert!(file.starts_with("100644 ") && !file.contains("apple"), "{file}");
    if set.is_ok() {
        assert!(file.contains("posix_acl_access") && all[Path::new("d")].contains(key), "{all:?}");
    }
    // But no directory replaces a file.
    let failure = copy_in(dir.path(), &Layer::new().file("d/file/x", b"").done()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::BadArchive, "{failure}");
}

#[test]
fn all_entries_get_the_requested_owner() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let tar = Layer::new()
        .dir("dir")
        .file("dir/file", b"x")
        .symlink("dir/link", "file")
        .link(EntryType::Link, "dir/hard", "dir/file")
        .file("implied/dir/file", b"x")
        .done();
    let request = CopyIn {
        path: path(&dir.path().join("made/on/demand")),
        create: true,
        owner: Some(Owner { uid: 1234, gid: 4321 }),
    };
    apart(|| unpack_below(&request, &tar[..])).unwrap();
    let owner = |name: &str| {
        let meta = fs::symlink_metadata(dir.path().join("made").join(name)).unwrap();
        (meta.uid(), meta.gid(), meta.permissions().mode() & 0o777)
    };
    for name in ["", "on/demand", "on/demand/dir", "on/demand/implied", "on/demand/implied/dir"] {
        assert_eq!(owner(name), (1234, 4321, 0o755), "{name}");
    }
    for name in ["file", "hard"] {
        assert_eq!(owner(&format!("on/demand/dir/{name}")), (1234, 4321, 0o644), "{name}");
    }
    assert_eq!(owner("on/demand/dir/link").0, 1234);
    let nobody = CopyIn { owner: Some(Owner { uid: u32::MAX, gid: 0 }), ..request };
    assert!(apart(|| unpack_below(&nobody, &tar[..])).is_err());
}

#[test]
fn destinations_are_resolved_as_in_the_box() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("real")).unwrap();
    fs::write(at("plain"), b"").unwrap();
    symlink(at("real"), at("link")).unwrap();
    let tar = Layer::new().file("f", b"x").done();
    copy_in(&at("link"), &tar).unwrap();
    assert!(at("real/f").exists());
    for (name, kind) in [
        ("missing", FailureKind::NoSuchPath),
        ("plain", FailureKind::NotADirectory),
        ("plain/x", FailureKind::NotADirectory),
    ] {
        let failure = copy_in(&at(name), &tar).unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(name), "{failure}");
    }
}

#[test]
fn hostile_tars_stay_in_their_directory() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let outside = dir.path().join("outside");
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), b"secret").unwrap();
    // Symlinks that the box has left there.
    symlink(&outside, root.join("planted")).unwrap();
    symlink("../outside", root.join("planted-relative")).unwrap();
    let absolute = outside.to_str().unwrap();
    let cases = [
        ("above the root", Layer::new().file("../outside/evil", b"x")),
        ("above the root", Layer::new().file("a/../../outside/evil", b"x")),
        ("out of the destination", Layer::new().file("planted/evil", b"x")),
        ("out of the destination", Layer::new().file("planted/new/evil", b"x")),
        ("out of the destination", Layer::new().dir("planted-relative/evil")),
        ("out of the destination", Layer::new().symlink("s", absolute).file("s/evil", b"x")),
        ("out of the destination", Layer::new().symlink("s", "..").file("s/outside/evil", b"x")),
        ("s/evil", Layer::new().symlink("s", "s").file("s/evil", b"x")),
        ("impossible", Layer::new().link(EntryType::Link, "evil", "planted/secret")),
        ("above the root", Layer::new().link(EntryType::Link, "evil", "../outside/secret")),
        ("s/evil", Layer::new().symlink("s", "/no/such").file("s/evil", b"x")),
    ];
    for (says, layer) in cases {
        let failure = copy_in(&root, &layer.done()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::BadArchive, "{failure}");
        assert!(failure.message.contains(says), "{failure} says nothing of {says:?}");
        let there: Vec<_> =
            fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(there, ["secret"], "{says}");
        assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
        assert!(!Path::new("/no").exists());
    }
    // An absolute name starts at the destination.
    copy_in(&root, &Layer::new().file(&format!("{absolute}/inside"), b"x").done()).unwrap();
    assert!(root.join(&absolute[1..]).join("inside").exists());
    // A symlink out of the destination and back is followed.
    fs::create_dir(root.join("real")).unwrap();
    symlink(root.join("real"), root.join("back")).unwrap();
    copy_in(&root, &Layer::new().file("back/file", b"x").done()).unwrap();
    assert!(root.join("real/file").exists());
    // A directory entry does not change the target of a symlink.
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let before = mode(&outside);
    let mut header = Layer::header(EntryType::Directory, 0o700, 0);
    header.set_uid(77);
    copy_in(&root, &Layer::new().raw(header, b"planted", b"").done()).unwrap();
    assert_eq!((mode(&outside), mode(&root.join("planted"))), (before, 0o700));
}

#[test]
fn a_directory_replaced_by_a_link_leads_nowhere_else() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o711)).unwrap();
    let mut layer = Layer::new();
    for i in 0..300 {
        let mut header = Layer::header(EntryType::Directory, 0o2777, 0);
        header.set_uid(99);
        layer = layer.raw(header, b"swap", b"").file(&format!("swap/sub{i}/file"), b"x");
    }
    let tar = layer.done();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = fs::rename(root.join("swap"), root.join("aside"));
                let _ = symlink(&outside, root.join("swap"));
                let _ = fs::remove_file(root.join("swap"));
                let _ = fs::rename(root.join("aside"), root.join("swap"));
            }
        });
        for _ in 0..20 {
            // The race decides whether the copy succeeds, but not where it writes.
            let _ = copy_in(&root, &tar);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
    let meta = fs::metadata(&outside).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.uid()), (0o711, 0));
}

#[test]
fn packing_ends_when_the_reader_is_gone() {
    needs_root!();
    struct Gone(usize);
    impl Write for Gone {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            self.0 -= 1;
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let request = CopyOut { path: b"/usr".to_vec(), follow: false };
    let failure = apart(|| pack(&request, Gone(3))).unwrap_err().failure();
    assert!(failure.message.contains("reader"), "{failure}");
}

#[test]
fn deep_and_wide_trees_need_one_open_directory() {
    needs_root!();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let deep = vec!["d"; 1500].join("/");
    fs::create_dir_all(from.path().join(&deep)).unwrap();
    fs::write(from.path().join(&deep).join("bottom"), b"here").unwrap();
    let tar = copy_out(from.path().join(".")).unwrap();
    copy_in(to.path(), &tar).unwrap();
    let mut content = String::new();
    let bottom = to.path().join(&deep).join("bottom");
    fs::File::open(bottom).unwrap().read_to_string(&mut content).unwrap();
    assert_eq!(content, "here");
}
