//! The busybox image: one static program under all its names, and the few files programs expect.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

use crate::apt;
use crate::build::{output, run};

const PACKAGE: &str = "busybox-static";
const DIRECTORIES: [(&str, u32); 12] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];
const FILES: [(&str, &str); 2] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
];

/// See [`super::Kind::recipe`].
pub(super) fn recipe() -> String {
    format!("3 {PACKAGE} {DIRECTORIES:?} {FILES:?}")
}

/// Writes the layer to `tar`; `work` is for what is needed on the way.
pub(super) fn layer(work: &Path, tar: &Path) -> Result<()> {
    let deb = apt::download(PACKAGE, work)?;
    let package = work.join("package");
    run(apt::command("dpkg-deb").arg("--extract").arg(deb).arg(&package))?;
    let program = ["bin/busybox", "usr/bin/busybox"]
        .map(|path| package.join(path))
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("{PACKAGE} has no program busybox"))?;
    let applets = output(std::process::Command::new(&program).arg("--list"))?;
    let applets = String::from_utf8(applets).context("busybox lists no text")?;
    let program = fs::read(&program)?;

    let mut layer = Layer(Builder::new(File::create(tar)?));
    for (path, mode) in DIRECTORIES {
        layer.entry(&format!("{path}/"), EntryType::Directory, mode, b"")?;
    }
    for (path, text) in FILES {
        layer.entry(path, EntryType::Regular, 0o644, text.as_bytes())?;
    }
    layer.entry("bin/busybox", EntryType::Regular, 0o755, &program)?;
    for applet in applets.lines().filter(|name| *name != "busybox" && !name.contains('/')) {
        layer.link(&format!("bin/{applet}"), EntryType::Link, "bin/busybox")?;
    }
    // Where scripts look for it.
    layer.link("usr/bin/env", EntryType::Symlink, "/bin/env")?;
    layer.0.into_inner()?;
    Ok(())
}

/// A layer with entries that belong to root and have no time, so that it is the same bytes every
/// time.
struct Layer(Builder<File>);

impl Layer {
    fn entry(&mut self, path: &str, kind: EntryType, mode: u32, contents: &[u8]) -> Result<()> {
        let mut header = Self::header(kind, mode);
        header.set_size(contents.len() as u64);
        Ok(self.0.append_data(&mut header, path, contents)?)
    }

    fn link(&mut self, path: &str, kind: EntryType, target: &str) -> Result<()> {
        Ok(self.0.append_link(&mut Self::header(kind, 0o755), path, target)?)
    }

    fn header(kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header
    }
}
