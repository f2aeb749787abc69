//! `rootfs:DIR`: the tar stream of a directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use boxlite_rootfs_builder::{Error, Silent};
use tar::EntryType;

use crate::support::*;

fn reference(dir: &Path) -> String {
    format!("rootfs:{}", dir.display())
}

struct Member {
    kind: EntryType,
    mode: u32,
    link: Vec<u8>,
    content: Vec<u8>,
    pax: Vec<(String, Vec<u8>)>,
    device: (Option<u32>, Option<u32>),
    owner: (u64, u64),
}

fn read_all(stream: &[u8]) -> BTreeMap<String, Member> {
    let mut archive = tar::Archive::new(stream);
    let mut members = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let pax = entry.pax_extensions().unwrap().into_iter().flatten().map(|record| {
            let record = record.unwrap();
            (record.key().unwrap().to_owned(), record.value_bytes().to_vec())
        });
        let pax = pax.collect();
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let header = entry.header();
        let member = Member {
            kind: header.entry_type(),
            mode: header.mode().unwrap(),
            device: (header.device_major().unwrap(), header.device_minor().unwrap()),
            owner: (header.uid().unwrap(), header.gid().unwrap()),
            link: entry.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default(),
            content,
            pax,
        };
        assert!(members.insert(path.clone(), member).is_none(), "{path} twice");
    }
    members
}

/// A directory with one of everything that needs no privilege.
fn sample(dir: &Path) {
    fs::create_dir_all(dir.join("etc/empty")).unwrap();
    fs::write(dir.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(dir.join("block"), [9; 512]).unwrap();
    fs::write(dir.join("nothing"), "").unwrap();
    fs::hard_link(dir.join("etc/passwd"), dir.join("same")).unwrap();
    fs::set_permissions(dir.join("block"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("/etc/passwd", dir.join("link")).unwrap();
    symlink("x".repeat(300), dir.join("long-link")).unwrap();
    fs::write(dir.join("n".repeat(200)), "long name").unwrap();
    fs::write(dir.join(std::ffi::OsStr::from_bytes(b"raw\xff\nname")), "raw").unwrap();
    run(Command::new("mkfifo").arg(dir.join("fifo")));
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
}

#[test]
fn everything_is_in_the_stream() {
    let fixture = Fixture::new();
    let dir = fixture.path("root");
    sample(&dir);
    let stream = fixture.build(&reference(&dir)).unwrap();
    let members = read_all(&stream);
    let names: Vec<&str> = members.keys().map(String::as_str).collect();
    assert_eq!(names.len(), 12, "{names:?}");
    assert_eq!(members["./"].kind, EntryType::Directory);
    assert_eq!(members["etc/empty/"].kind, EntryType::Directory);
    assert_eq!(members["etc/passwd"].content, b"root:x:0:0::/:/bin/sh\n");
    assert_eq!(members["same"].kind, EntryType::Link);
    assert_eq!(members["same"].link, b"etc/passwd");
    assert_eq!(members["block"].content, [9; 512]);
    assert_eq!(members["block"].mode, 0o4755);
    assert_eq!(members["nothing"].content, b"");
    assert_eq!(
        (members["link"].kind, &*members["link"].link),
        (EntryType::Symlink, &b"/etc/passwd"[..])
    );
    assert_eq!(members["long-link"].link, "x".repeat(300).as_bytes());
    assert_eq!(members[&"n".repeat(200)].content, b"long name");
    assert_eq!(members["raw\u{fffd}\nname"].content, b"raw");
    assert_eq!(members["fifo"].kind, EntryType::Fifo);

    // The files of an unprivileged user become root's.
    let metadata = fs::metadata(dir.join("block")).unwrap();
    let me = rustix::process::geteuid().as_raw();
    assert_eq!(members["block"].owner.0, if me == 0 { metadata.uid().into() } else { 0 });
    assert_eq!(stream.len() % 512, 0);
}

#[test]
fn gnu_tar_reads_it_too() {
    if !has_tool("tar") {
        return;
    }
    let fixture = Fixture::new();
    let dir = fixture.path("root");
    sample(&dir);
    let sparse = fs::File::create(dir.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    for n in 0..40u64 {
        std::os::unix::fs::FileExt::write_at(&sparse, b"data", (n * 3) << 19).unwrap();
    }
    sparse.sync_all().unwrap();
    fs::write(fixture.path("stream.tar"), fixture.build(&reference(&dir)).unwrap()).unwrap();
    let out = fixture.path("out");
    fs::create_dir(&out).unwrap();
    run(Command::new("tar").arg("-xpf").arg(fixture.path("stream.tar")).arg("-C").arg(&out));
    fs::remove_file(dir.join("socket")).unwrap();
    run(Command::new("diff")
        .arg("-r")
        .arg("--no-dereference")
        .args([&dir, &out])
        .arg("-x")
        .arg("fifo"));
    let links = |dir: &Path| fs::metadata(dir.join("same")).unwrap().nlink();
    assert_eq!(links(&out), links(&dir));
    assert_eq!(fs::metadata(out.join("sparse")).unwrap().len(), 64 << 20);
}

#[test]
fn equal_content_has_equal_identity() {
    let fixture = Fixture::new();
    let dir = fixture.path("root");
    sample(&dir);
    let first = fixture.resolve(&reference(&dir)).unwrap();
    let again = fixture.resolve(&reference(&dir)).unwrap();
    assert_eq!(first.digest(), again.digest());
    assert_eq!(first.digest(), first.chain_id());
    assert_eq!(first.config().cmd, ["/bin/sh"]);
    assert!(first.config().env[0].starts_with("PATH=/usr/local/sbin:"));
    fs::set_permissions(dir.join("nothing"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_ne!(first.digest(), fixture.resolve(&reference(&dir)).unwrap().digest());
}

#[test]
fn a_change_in_between_is_noticed() {
    let fixture = Fixture::new();
    let dir = fixture.path("root");
    sample(&dir);
    let image = fixture.resolve(&reference(&dir)).unwrap();
    fs::write(dir.join("new"), "file").unwrap();
    let error = fixture.store().disk(&image, &Concatenate::default(), &Silent).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert_eq!(fixture.store_files(), [""; 0]);
}

#[test]
fn a_sparse_file_is_not_written_out() {
    let fixture = Fixture::new();
    let dir = fixture.path("root");
    fs::create_dir(&dir).unwrap();
    let file = fs::File::create(dir.join("big")).unwrap();
    file.set_len(1 << 40).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"middle", 1 << 39).unwrap();
    file.sync_all().unwrap();
    let stream = fixture.build(&reference(&dir)).unwrap();
    assert!(stream.len() < 1 << 20);
    let mut archive = tar::Archive::new(&stream[..]);
    let entry = archive.entries().unwrap().nth(1).unwrap().unwrap();
    assert_eq!(entry.size(), 1 << 40);
}

#[test]
fn names_that_mean_deletion_are_refused() {
    let fixture = Fixture::new();
    let dir = fixture.path("root");
    fs::create_dir_all(dir.join("a")).unwrap();
    fs::write(dir.join("a/.wh.file"), "").unwrap();
    let error = fixture.resolve(&reference(&dir)).unwrap_err().to_string();
    assert!(error.contains("a/.wh.file"), "{error}");
}

#[test]
fn depth_is_bounded_and_links_are_not_followed() {
    let fixture = Fixture::new();
    let dir = fixture.path("root");
    fs::create_dir_all(&dir).unwrap();
    symlink("..", dir.join("loop")).unwrap();
    let members = read_all(&fixture.build(&reference(&dir)).unwrap());
    assert_eq!(members.keys().collect::<Vec<_>>(), ["./", "loop"]);
    fs::create_dir_all(dir.join("d/".repeat(210))).unwrap();
    assert!(matches!(fixture.resolve(&reference(&dir)), Err(Error::TooMany { .. })));
}

#[test]
fn a_path_that_is_not_a_directory_is_named() {
    let fixture = Fixture::new();
    fs::write(fixture.path("file"), "").unwrap();
    for name in ["file", "none"] {
        let error = fixture.resolve(&reference(&fixture.path(name))).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn attributes_devices_and_owners() {
    use rustix::fs::XattrFlags;
    let fixture = Fixture::new();
    let dir = fixture.path("root");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "x").unwrap();
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(dir.join("file"), name, value, XattrFlags::empty())
    };
    if set("user.test", b"some\x00value").is_err() {
        eprintln!("skipped: no user attributes on this file system");
        return;
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(dir.join("file"), Some(3_000_000), Some(12)).unwrap();
        let mknod = Command::new("mknod").arg(dir.join("null")).args(["c", "1", "3"]).status();
        if !mknod.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no device nodes on this file system");
        }
    }
    let members = read_all(&fixture.build(&reference(&dir)).unwrap());
    assert_eq!(
        members["file"].pax,
        [("SCHILY.xattr.user.test".to_owned(), b"some\x00value".to_vec())]
    );
    if rustix::process::geteuid().is_root() {
        assert_eq!(members["file"].owner, (3_000_000, 12));
        if let Some(null) = members.get("null") {
            assert_eq!(null.kind, EntryType::Char);
            assert_eq!(null.device, (Some(1), Some(3)));
        }
    }
}
