//! Unpacks archives made by GNU tar and by hand onto a real file system. Needs root, as the agent does, for owners,
//! device nodes and `chroot`.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use boxlite_agent::unpack::{UnpackError, Unpacked, unpack_in_root};
use boxlite_proto::message::FailureKind;
use tar::EntryType;

use self::common::{Layer, default_acl, describe, needs_root, tree_of_everything};

/// Unpacks in a thread of its own, whose root directory changes.
fn unpack(root: &Path, tar: &[u8]) -> Result<Unpacked, UnpackError> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                rustix::process::umask(rustix::fs::Mode::empty());
                unpack_in_root(root, tar)
            })
            .join()
            .unwrap()
    })
}

fn fails(root: &Path, tar: &[u8], kind: FailureKind, says: &[&str]) {
    let failure = unpack(root, tar).expect_err("a failure").failure();
    assert_eq!(failure.kind, kind, "{failure}");
    for part in says {
        assert!(failure.message.contains(part), "{:?} says nothing of {part:?}", failure.message);
    }
}

fn gnu_tar(root: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .arg("-C")
        .arg(root)
        .args(["--numeric-owner", "--warning=no-timestamp", "-cf", "-"])
        .args(arguments)
        .arg(".")
        .output()
        .expect("GNU tar");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn pax_tars_are_unpacked_with_everything() {
    needs_root!();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree_of_everything(from.path());
    let want = describe(from.path());
    for sparse in ["0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={sparse}");
        let tar = gnu_tar(
            from.path(),
            &["--format=pax", "--xattrs", "--xattrs-include=*", "--sparse", &version],
        );
        assert!(tar.len() < 2 << 20, "the archive is not sparse: {}", tar.len());
        let to = to.path().join(sparse);
        fs::create_dir(&to).unwrap();
        let unpacked = unpack(&to, &tar).unwrap();
        assert_eq!(unpacked.entries, want.len() as u64);
        let got = describe(&to);
        for (path, want) in &want {
            assert_eq!(got.get(path), Some(want), "{} with {sparse}", path.display());
        }
        assert_eq!(got.len(), want.len());
        for name in ["sparse", "hole"] {
            let (ours, theirs) = (
                fs::metadata(to.join(name)).unwrap(),
                fs::metadata(from.path().join(name)).unwrap(),
            );
            assert!(ours.blocks() <= theirs.blocks() + 16, "{name}: holes were written");
        }
    }
}

#[test]
fn gnu_tars_are_unpacked_with_all_that_they_hold() {
    needs_root!();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree_of_everything(from.path());
    let tar = gnu_tar(from.path(), &["--format=gnu", "--sparse"]);
    unpack(to.path(), &tar).unwrap();
    // GNU's format has no extended attributes and only whole seconds.
    let comparable = |root: &Path| -> BTreeMap<_, _> {
        let mut all = describe(root);
        for text in all.values_mut() {
            let (head, _) = text.rsplit_once(" [").unwrap();
            let (before, after) = head.split_once('.').unwrap();
            let (_, after) = after.split_once(' ').unwrap();
            *text = format!("{before} {after}");
        }
        all
    };
    let (want, got) = (comparable(from.path()), comparable(to.path()));
    for (path, want) in &want {
        // tar rounds down, the kernel shows -1000.5 s as -1000 s and 500 ms.
        if path != Path::new("exact-block") {
            assert_eq!(got.get(path), Some(want), "{}", path.display());
        }
    }
    assert!(fs::metadata(to.path().join("sparse")).unwrap().blocks() < 4096);
}

#[test]
fn old_formats_are_unpacked() {
    needs_root!();
    for format in ["v7", "ustar"] {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("a/b")).unwrap();
        fs::write(from.path().join("a/b/c"), b"content").unwrap();
        symlink("c", from.path().join("a/b/d")).unwrap();
        let format = format!("--format={format}");
        unpack(to.path(), &gnu_tar(from.path(), &[&format])).unwrap();
        assert_eq!(fs::read(to.path().join("a/b/d")).unwrap(), b"content", "{format}");
    }
}

#[test]
fn paths_and_links_resolve_inside() {
    needs_root!();
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::create_dir(outer.path().join("outside")).unwrap();
    let tar = Layer::new()
        .file("/absolute", b"a")
        .file("./dot", b"b")
        .symlink("up", "../outside")
        .file("up/one", b"c")
        .symlink("abs", "/deep/er")
        .file("abs/two", b"d")
        .dir("real")
        .symlink("lib", "real")
        .file("lib/three", b"e")
        .file("x/../y", b"f")
        .link(EntryType::Link, "hard", "/absolute")
        .link(EntryType::Link, "hard2", "lib/three")
        .done();
    unpack(&root, &tar).unwrap();
    let read = |name: &str| fs::read(root.join(name)).unwrap();
    assert_eq!(read("absolute"), b"a");
    assert_eq!(read("dot"), b"b");
    // `..` of the root is the root.
    assert_eq!(read("outside/one"), b"c");
    assert_eq!(read("deep/er/two"), b"d");
    assert_eq!(read("real/three"), b"e");
    assert_eq!(read("y"), b"f");
    assert_eq!((read("hard"), read("hard2")), (b"a".to_vec(), b"e".to_vec()));
    assert!(fs::read_dir(outer.path().join("outside")).unwrap().next().is_none());
}

#[test]
fn errors_of_hostile_and_broken_layers_name_the_entry() {
    needs_root!();
    let bad = FailureKind::BadLayer;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let refused = |layer: Layer, says: &[&str]| fails(root, &layer.done(), bad, says);

    refused(Layer::new().file("ok", b"").file("../evil", b"x"), &["../evil", "above the root"]);
    refused(Layer::new().file("a/../../evil", b"x"), &["a/../../evil", "above the root"]);
    refused(Layer::new().file("..", b"x"), &["\"..\"", "above the root"]);
    refused(Layer::new().file(".", b"x"), &["root directory"]);
    let link = |name: &str, to: &str| Layer::new().link(EntryType::Link, name, to);
    refused(link("l", "../../etc/passwd"), &["\"l\"", "../../etc/passwd", "above the root"]);
    refused(link("l", "missing"), &["\"l\"", "missing"]);
    refused(link("l", "/"), &["\"l\"", "directory"]);
    refused(Layer::new().dir("d").link(EntryType::Link, "l", "d"), &["\"l\"", "\"d\""]);
    refused(Layer::new().symlink("s", ""), &["\"s\""]);
    refused(Layer::new().symlink("loop", "loop").file("loop/x", b""), &["loop/x"]);
    for kind in *b"VMNDZz" {
        let header = Layer::header(EntryType::new(kind), 0o644, 0);
        refused(
            Layer::new().raw(header, b"odd", b""),
            &["odd", "type", &char::from(kind).to_string()],
        );
    }
    for name in [".wh.", "d/.wh..", ".wh...", ".wh.a/b"] {
        refused(Layer::new().file(name, b""), &[name, "whiteout"]);
    }
    let owner = |uid| {
        let mut header = Layer::header(EntryType::Regular, 0o644, 0);
        header.set_uid(uid);
        Layer::new().raw(header, b"owned", b"")
    };
    refused(owner(u64::from(u32::MAX)), &["owned", "uid"]);
    refused(owner(1 << 40), &["owned", "uid"]);
    let mut header = Layer::header(EntryType::Char, 0o644, 0);
    header.set_device_major(5000).unwrap();
    header.set_device_minor(0).unwrap();
    refused(Layer::new().raw(header, b"dev", b""), &["dev", "major"]);

    let long = "x".repeat(256);
    refused(Layer::new().pax(&[("path", long.as_bytes())]).file("f", b""), &["xxxx", "too long"]);
    let deep = "d/".repeat(3000);
    refused(Layer::new().pax(&[("path", deep.as_bytes())]).dir("f"), &["d/d/d", "too long"]);
    refused(Layer::new().pax(&[("path", b"nul\0nul")]).file("f", b""), &["NUL"]);
    refused(Layer::new().pax(&[("size", b"-5")]).file("f", b""), &["PAX record \"size\""]);
    let big = vec![b'v'; 70_000];
    refused(
        Layer::new().pax(&[("SCHILY.xattr.user.big", &big)]).file("f", b""),
        &["\"f\"", "user.big", "70000"],
    );
    let half = vec![b'v'; 20_000];
    refused(
        Layer::new().pax(&[("SCHILY.xattr.user.half", &half)]).file("f", b""),
        &["user.half", "20000"],
    );
    refused(Layer::new().pax(&[("SCHILY.xattr.nonsense", b"x")]).file("f", b""), &["nonsense"]);

    // Not a tar at all.
    fails(root, &[b'x'; 2048], bad, &["not a tar archive"]);
    fails(root, b"short", bad, &["truncated", "not a tar archive"]);
}

#[test]
fn a_truncated_layer_is_noticed_wherever_it_is_cut() {
    needs_root!();
    let tar = Layer::new()
        .pax(&[("mtime", b"1.5")])
        .file("first", &[1; 700])
        .file("second", &[2; 5000])
        .done();
    // A tar may end between two members.
    let boundaries = [0, 2560, 2560 + 512 + 5120, 2560 + 512 + 5120 + 512];
    for len in (0..tar.len() - 512).step_by(100).chain(boundaries) {
        let root = tempfile::tempdir().unwrap();
        let result = unpack(root.path(), &tar[..len]);
        if boundaries.contains(&len) {
            assert!(result.is_ok(), "{len}: {result:?}");
        } else if len < 2560 + 512 + 5120 {
            let failure = result.expect_err(&len.to_string()).failure();
            assert_eq!(failure.kind, FailureKind::BadLayer);
            assert!(failure.message.contains("truncated"), "{failure}");
        }
    }
}

#[test]
fn giant_sizes_cost_only_what_arrives() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let header = |size| Layer::header(EntryType::Regular, 0o644, size);
    let mut giant = header(0);
    giant.set_size(1 << 50);
    let tar = Layer::new().raw(giant, b"giant", b"only this").done();
    fails(root, &tar, FailureKind::BadLayer, &["giant", "truncated"]);
    assert!(fs::metadata(root.join("giant")).unwrap().len() < 1 << 20);

    let tar = Layer::new().pax(&[("size", b"18446744073709551615")]).file("max", b"").done();
    fails(root, &tar, FailureKind::BadLayer, &["max"]);

    // A file of holes only, as large as the file system can name, then larger.
    let sparse = |size: &'static [u8]| {
        Layer::new()
            .pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", b"0,4")])
            .file("holes", b"data")
            .done()
    };
    unpack(root, &sparse(b"1099511627776")).unwrap();
    let meta = fs::metadata(root.join("holes")).unwrap();
    assert!(meta.len() == 1 << 40 && meta.blocks() <= 16);
    fails(root, &sparse(b"9223372036854775807"), FailureKind::BadLayer, &["holes", "size"]);
    let tar = Layer::new()
        .pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"5,4,0,4")])
        .file("map", b"datadata")
        .done();
    fails(root, &tar, FailureKind::BadLayer, &["map", "sparse map"]);
}

#[test]
fn later_entries_of_a_name_win() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let tar = Layer::new()
        .file("f", b"first")
        .link(EntryType::Link, "f-alias", "f")
        .file("f", b"second")
        .dir("d")
        .file("d/inside", b"gone")
        .dir("d/deep/er")
        .file("d", b"a file now")
        .file("e", b"a file")
        .dir("e")
        .file("e/inside", b"here")
        .symlink("s", "/elsewhere")
        .file("s", b"not through the link")
        .symlink("sd", "e")
        .dir("sd")
        .file("sd/x", b"not in e")
        .file("keep/a", b"a")
        .dir("keep")
        .link(EntryType::Link, "f", "f")
        .link(EntryType::Link, "f-alias", "f-alias")
        .done();
    unpack(root, &tar).unwrap();
    let read = |name: &str| fs::read(root.join(name)).unwrap();
    assert_eq!((read("f"), read("f-alias")), (b"second".to_vec(), b"first".to_vec()));
    assert_eq!(read("d"), b"a file now");
    assert_eq!(read("e/inside"), b"here");
    assert_eq!(read("s"), b"not through the link");
    assert!(!root.join("elsewhere").exists());
    assert!(fs::symlink_metadata(root.join("sd")).unwrap().is_dir());
    assert!(root.join("sd/x").exists() && !root.join("e/x").exists());
    assert_eq!(read("keep/a"), b"a");
}

#[test]
fn directories_keep_their_content_and_get_new_metadata() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    unpack(root, &Layer::new().dir("d").file("d/old", b"old").done()).unwrap();
    let mut header = Layer::header(EntryType::Directory, 0o1750, 0);
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(1_111_111_111);
    unpack(root, &Layer::new().raw(header, b"d", b"").file("d/new", b"new").done()).unwrap();
    let meta = fs::metadata(root.join("d")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o1750, 12, 34));
    assert_eq!(meta.mtime(), 1_111_111_111);
    assert!(root.join("d/old").exists() && root.join("d/new").exists());
}

/// Other engines write each layer to a directory of its own and mount them as an overlay. There, a directory of an
/// upper layer hides any entry with its name in a lower one.
#[test]
fn a_directory_replaces_an_entry_in_the_middle_of_a_path() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let lower = Layer::new()
        .file("a/b", b"lower")
        .file("kept", b"lower")
        .symlink("to-file", "kept")
        .symlink("to-dir", "real")
        .symlink("through", "a/b/new")
        .raw(Layer::header(EntryType::Fifo, 0o644, 0), b"fifo", b"")
        .dir("real")
        .file("same", b"")
        // Within one layer, the later entry wins.
        .file("same/x", b"upper")
        .done();
    unpack(root, &lower).unwrap();
    let upper = Layer::new()
        .file("a/b/c", b"upper")
        .file("a/b/d/e", b"upper")
        .file("to-file/x", b"upper")
        .file("to-dir/x", b"upper")
        .file("through/x", b"upper")
        .dir("fifo/d")
        .file(".wh.a", b"")
        .done();
    unpack(root, &upper).unwrap();
    for file in ["a/b/c", "a/b/d/e", "to-file/x", "real/x", "a/b/new/x", "same/x"] {
        assert_eq!(fs::read(root.join(file)).unwrap(), b"upper", "{file}");
    }
    assert_eq!(fs::read(root.join("kept")).unwrap(), b"lower");
    assert!(fs::symlink_metadata(root.join("to-dir")).unwrap().is_symlink());
    assert_eq!(fs::symlink_metadata(root.join("a/b")).unwrap().mode(), 0o40755);
    assert!(root.join("fifo/d").is_dir());
}

#[test]
fn unsupported_attributes_are_left_out() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let attributes: [(&str, &[u8]); 4] = [
        ("SCHILY.xattr.com.apple.quarantine", b"0081;5f5e100;Safari;"),
        ("SCHILY.xattr.user.note", b"here"),
        ("SCHILY.xattr.system.nfs4_acl", b"\0"),
        ("SCHILY.xattr.org.freebsd.nodump", b"1"),
    ];
    let tar = Layer::new()
        .pax(&attributes)
        .file("file", b"x")
        .pax(&attributes)
        .dir("dir")
        .pax(&attributes)
        .symlink("link", "file")
        .done();
    unpack(dir.path(), &tar).unwrap();
    let all = describe(dir.path());
    let of = |name: &str| all[Path::new(name)].rsplit_once(" [").unwrap().1.to_owned();
    assert_eq!(
        (of("file"), of("dir")),
        ("\"user.note=here\"]".into(), "\"user.note=here\"]".into())
    );
    assert_eq!(of("link"), "]");
}

#[test]
fn a_default_access_control_list_changes_no_mode() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let acl = default_acl();
    let below = |layer: Layer| {
        layer
            .raw(Layer::header(EntryType::Regular, 0o664, 1), b"d/file", b"x")
            .raw(Layer::header(EntryType::Directory, 0o777, 0), b"d/dir", b"")
            .raw(Layer::header(EntryType::Fifo, 0o666, 0), b"d/fifo", b"")
            .file("d/implied/file", b"x")
    };
    let with_acl = [("SCHILY.xattr.system.posix_acl_default", &acl[..])];
    unpack(dir.path(), &Layer::new().pax(&with_acl).dir("d").done()).unwrap();
    if !describe(dir.path())[Path::new("d")].contains("posix_acl_default") {
        eprintln!("SKIPPED: no access control lists on {}", dir.path().display());
        return;
    }
    unpack(dir.path(), &below(Layer::new()).done()).unwrap();
    let plain = tempfile::tempdir().unwrap();
    unpack(plain.path(), &below(Layer::new()).done()).unwrap();
    let (got, want) = (describe(dir.path()), describe(plain.path()));
    for name in ["d/file", "d/dir", "d/fifo", "d/implied/file"] {
        assert_eq!(got[Path::new(name)], want[Path::new(name)], "{name}");
    }
    let implied = got[Path::new("d/implied")].clone();
    assert!(implied.starts_with("40755 ") && implied.ends_with("[]"), "{implied}");
}

fn names(root: &Path) -> Vec<String> {
    describe(root)
        .keys()
        .map(|path| path.to_str().unwrap().to_owned())
        .filter(|p| !p.is_empty())
        .collect()
}

#[test]
fn whiteouts_remove_only_entries_of_lower_layers() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let lower = Layer::new()
        .file("file", b"lower")
        .file("both", b"lower")
        .file("tree/a/b", b"lower")
        .file("tree/c", b"lower")
        .file("mixed/lower", b"lower")
        .file("mixed/deep/lower", b"lower")
        .symlink("link", "tree")
        .file("stays", b"lower")
        .done();
    unpack(root, &lower).unwrap();
    let upper = Layer::new()
        .file(".wh.file", b"")
        .file(".wh.missing", b"")
        .file("no/such/.wh.dir", b"")
        // Entries of this layer stay, before and after the whiteout.
        .file("both", b"upper")
        .file(".wh.both", b"")
        .file(".wh.tree", b"")
        .file("mixed/deep/upper", b"upper")
        .file(".wh.mixed", b"")
        .file("mixed/later", b"upper")
        .file(".wh.link", b"")
        .done();
    unpack(root, &upper).unwrap();
    assert_eq!(
        names(root),
        ["both", "mixed", "mixed/deep", "mixed/deep/upper", "mixed/later", "stays"]
    );
    assert_eq!(fs::read(root.join("both")).unwrap(), b"upper");
}

#[test]
fn a_link_to_a_lower_file_survives_its_whiteout() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    unpack(root, &Layer::new().file("old", b"content").done()).unwrap();
    let rename = Layer::new().link(EntryType::Link, "new", "old").file(".wh.old", b"").done();
    unpack(root, &rename).unwrap();
    assert_eq!(names(root), ["new"]);
}

#[test]
fn an_opaque_directory_hides_lower_entries_in_any_order() {
    needs_root!();
    for position in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let lower = Layer::new()
            .file("d/lower", b"")
            .file("d/sub/lower", b"")
            .file("d/own/lower", b"")
            .file("beside", b"")
            .done();
        unpack(root, &lower).unwrap();
        let mut upper = Layer::new();
        for i in 0..5 {
            if i == position {
                upper = upper.file("d/.wh..wh..opq", b"");
            }
            upper = match i {
                0 => upper.dir("d"),
                1 => upper.dir("d/own"),
                2 => upper.file("d/own/new", b""),
                3 => upper.file("d/new", b""),
                _ => upper,
            };
        }
        unpack(root, &upper.done()).unwrap();
        assert_eq!(names(root), ["beside", "d", "d/new", "d/own", "d/own/new"], "at {position}");
    }
}

#[test]
fn a_whiteout_follows_symlinked_directories() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let lower =
        Layer::new().file("usr/lib/a", b"").file("usr/lib/b", b"").symlink("lib", "usr/lib");
    unpack(root, &lower.done()).unwrap();
    let upper = Layer::new().file("lib/a", b"new").file("usr/lib/.wh..wh..opq", b"").done();
    unpack(root, &upper).unwrap();
    assert_eq!(names(root), ["lib", "usr", "usr/lib", "usr/lib/a"]);
}

#[test]
fn whiteouts_in_the_first_layer_hide_nothing() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let tar =
        Layer::new().file("a", b"").file(".wh.a", b"").file(".wh..wh..opq", b"").file("b", b"");
    let unpacked = unpack(root, &tar.done()).unwrap();
    assert_eq!(names(root), ["a", "b"]);
    assert_eq!(unpacked.entries, 4);
}

#[test]
fn metadata_of_aufs_is_skipped() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let tar =
        Layer::new().file(".wh..wh.aufs", b"").dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", b"x");
    unpack(dir.path(), &tar.file("a", b"").done()).unwrap();
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn bytes_after_the_end_are_read_and_ignored() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Layer::new().file("a", b"12345").done();
    tar.write_all(&[0; 10_240]).unwrap();
    tar.write_all(&Layer::new().file("b", b"").done()).unwrap();
    let mut rest = &tar[..];
    let unpacked = std::thread::scope(|scope| {
        scope.spawn(|| unpack_in_root(dir.path(), &mut rest)).join().unwrap().unwrap()
    });
    assert!(rest.is_empty());
    assert_eq!(unpacked, Unpacked { entries: 1, bytes: 5 });
    assert_eq!(names(dir.path()), ["a"]);
    assert_eq!(unpack(dir.path(), b"").unwrap(), Unpacked::default());
}

#[test]
fn a_full_disk_is_reported() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let mount = rustix::mount::mount(
        "none",
        dir.path(),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=256k,nr_inodes=20"),
    );
    if let Err(e) = mount {
        eprintln!("skipped: cannot mount a tmpfs: {e}");
        return;
    }
    let data = vec![1; 400 << 10];
    let large = Layer::new().file("small", b"x").file("large", &data).done();
    fails(dir.path(), &large, FailureKind::DiskFull, &["large", "disk is full"]);
    let mut many = Layer::new();
    for i in 0..30 {
        many = many.file(&format!("f{i}"), b"");
    }
    fails(dir.path(), &many.done(), FailureKind::DiskFull, &["disk is full"]);
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
}
