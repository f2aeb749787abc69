//! Set-up shared by the tests: a server with a client, tars made by hand, a tree with every kind of entry, and a
//! description of a tree to compare.

// Not every test binary uses all of it.
#![allow(dead_code)]

pub(crate) mod client;
pub(crate) mod server;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

/// Skips a test that needs root without root.
macro_rules! needs_root {
    () => {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
    };
}
pub(crate) use needs_root;

/// A tar made by hand.
pub(crate) struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub(crate) fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(size);
        header
    }

    /// Adds an entry with any name, even one that the builder would refuse.
    pub(crate) fn raw(mut self, mut header: Header, name: &[u8], data: &[u8]) -> Self {
        header.as_old_mut().name = [0; 100];
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(Self::header(EntryType::Regular, 0o644, data.len() as u64), name.as_bytes(), data)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.raw(Self::header(EntryType::Directory, 0o755, 0), name.as_bytes(), b"")
    }

    pub(crate) fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, 0o777, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.raw(header, name.as_bytes(), b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A value of `system.posix_acl_default`: a list that permits user 1234, and neither groups nor others.
pub(crate) fn default_acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [
        (1, 7, u32::MAX),
        (2, 7, 1234),
        (4, 0, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// Describes everything in a tree that a tar must preserve.
pub(crate) fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut links: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let content = if kind.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            let sum = bytes.iter().fold(0_u64, |sum, b| sum.wrapping_mul(31) + u64::from(*b));
            format!("{} bytes {sum:x}", bytes.len())
        } else if kind.is_char_device() || kind.is_block_device() {
            format!("device {:x}", meta.rdev())
        } else if kind.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                todo.push(entry.unwrap().path());
            }
            String::new()
        } else {
            "fifo".into()
        };
        let name = path.strip_prefix(root).unwrap().to_owned();
        let mut names = [0; 4096];
        let len = rustix::fs::llistxattr(&path, &mut names).unwrap();
        let mut xattrs: Vec<_> = names[..len]
            .split(|b| *b == 0)
            .filter(|name| !name.is_empty())
            .map(|name| {
                let mut value = [0; 4096];
                let len = rustix::fs::lgetxattr(&path, name, &mut value).unwrap();
                format!("{}={}", name.escape_ascii(), value[..len].escape_ascii())
            })
            .collect();
        xattrs.sort();
        let first = (!kind.is_dir() && meta.nlink() > 1)
            .then(|| links.entry(meta.ino()).or_insert_with(|| name.clone()).clone());
        // Hard links of a file are described by the smallest of their names, in any order of reading.
        if let Some(first) = first.filter(|first| name < *first) {
            links.insert(meta.ino(), name.clone());
            drop(first);
        }
        found.insert(
            name,
            format!(
                "{:o} {}:{} {}.{:09} links={} {content} {xattrs:?}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
                if kind.is_dir() { 0 } else { meta.nlink() },
            ),
        );
    }
    found
}

/// Makes a tree with every kind of entry.
pub(crate) fn tree_of_everything(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("usr/bin")).unwrap();
    fs::create_dir_all(at("var/mail")).unwrap();
    fs::create_dir_all(at("tmp")).unwrap();
    fs::write(at("usr/bin/tool"), b"#!/bin/sh\necho hi\n").unwrap();
    fs::write(at("usr/bin/su"), vec![7; 100_000]).unwrap();
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("exact-block"), vec![1; 512]).unwrap();
    fs::hard_link(at("usr/bin/tool"), at("usr/bin/tool2")).unwrap();
    fs::hard_link(at("usr/bin/tool"), at("alias")).unwrap();
    symlink("usr/bin", at("bin")).unwrap();
    symlink("/absolute/nowhere", at("dangling")).unwrap();
    symlink("../../../../etc/passwd", at("climbing")).unwrap();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    fs::create_dir_all(at(&long).parent().unwrap()).unwrap();
    fs::write(at(&long), b"long name").unwrap();
    symlink("t".repeat(300), at("long-link")).unwrap();
    fs::write(at("ünïcode ☃"), b"x").unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not\xff\xfeutf8")), b"x").unwrap();
    let node = |name: &str, kind, device| {
        let mode = rustix::fs::Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(rustix::fs::CWD, at(name), kind, mode, device).unwrap();
    };
    use rustix::fs::{FileType, makedev};
    node("null", FileType::CharacterDevice, makedev(1, 3));
    node("sda9", FileType::BlockDevice, makedev(8, 9));
    node("big", FileType::CharacterDevice, makedev(300, 70_000));
    node("fifo", FileType::Fifo, 0);

    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    use std::os::unix::fs::FileExt;
    for i in 0..40_u64 {
        sparse
            .write_all_at(format!("piece {i}").repeat(700).as_bytes(), i * (1 << 20) + 4096)
            .unwrap();
    }
    fs::File::create(at("hole")).unwrap().set_len(5 << 20).unwrap();

    let own =
        |name: &str, uid, gid| std::os::unix::fs::lchown(at(name), Some(uid), Some(gid)).unwrap();
    own("usr/bin/tool", 1000, 1001);
    own("bin", 5, 6);
    own("var/mail", 0, 8);
    own("empty", 4_000_000_000, 3_000_000_000);
    own("null", 0, 3);
    let mode =
        |name: &str, mode| fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    mode("usr/bin/su", 0o4755);
    mode("usr/bin/tool", 0o2711);
    mode("var/mail", 0o2775);
    mode("tmp", 0o1777);
    mode("empty", 0o000);
    // In a setgid directory, with another group.
    fs::write(at("var/mail/root"), b"mail").unwrap();
    fs::create_dir(at("var/mail/dir")).unwrap();
    own("var/mail/root", 0, 0);
    own("var/mail/dir", 0, 0);
    mode("var/mail/dir", 0o700);

    let xattr = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(at(name), key, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    // The value contains a newline, which breaks readers that split PAX records at newlines.
    let capability = b"\x01\0\0\x02\0\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    xattr("usr/bin/tool", "security.capability", capability);
    xattr("empty", "user.note", b"with = and \n newline");
    xattr("usr", "user.dir", b"");
    xattr("usr", "trusted.thing", b"\0\xff");

    let times = |name: &str, seconds, nanoseconds| {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, at(name), &times, flags).unwrap();
    };
    times("dangling", 1_000_000_000, 987_654_321);
    times("exact-block", -1_000, 500_000_000);
    times("usr/bin", 1_234_567_890, 1);
    times("usr", 3_000_000_000, 0);
    times("null", 1, 2);
    times(".", 1_500_000_000, 5);
}
