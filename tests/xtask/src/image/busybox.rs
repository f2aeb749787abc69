//! The busybox image: one static program under all its names, and the few files programs expect.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail};
use boxlite_kernel::Arch;
use boxlite_kernel_builder::{Archive, Cache};
use tar::{Builder, EntryType, Header};

use crate::apt;
use crate::build::run;

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
pub(super) fn recipe(arch: Arch) -> String {
    let recipe = format!("3 {PACKAGE} {DIRECTORIES:?} {FILES:?}");
    if arch == Arch::HOST { recipe } else { format!("{recipe} {arch}") }
}

/// Writes the layer to `tar`; `work` is for what is needed on the way.
pub(super) fn layer(arch: Arch, work: &Path, tar: &Path) -> Result<()> {
    let program = program(arch, work)?;
    let applets = applets(&program).with_context(|| format!("{PACKAGE} lists no applets"))?;

    let mut layer = Layer(Builder::new(File::create(tar)?));
    for (path, mode) in DIRECTORIES {
        layer.entry(&format!("{path}/"), EntryType::Directory, mode, b"")?;
    }
    for (path, text) in FILES {
        layer.entry(path, EntryType::Regular, 0o644, text.as_bytes())?;
    }
    layer.entry("bin/busybox", EntryType::Regular, 0o755, &program)?;
    for applet in applets.into_iter().filter(|name| *name != "busybox") {
        layer.link(&format!("bin/{applet}"), EntryType::Link, "bin/busybox")?;
    }
    // Where scripts look for it.
    layer.link("usr/bin/env", EntryType::Symlink, "/bin/env")?;
    layer.0.into_inner()?;
    Ok(())
}

/// The program, as Debian has it for `arch`.
pub(crate) fn program(arch: Arch, work: &Path) -> Result<Vec<u8>> {
    let deb = if arch == Arch::HOST {
        apt::download(PACKAGE, work)?
    } else {
        let archive = Archive::open(&Cache::open()?, arch, &mut |_| {})?;
        let offers = archive.offers(PACKAGE, &mut |_| {})?;
        // The oldest is Debian 12's, as on a machine that has it.
        let offer = offers.iter().min_by(|a, b| a.compare_versions(b));
        let offer = offer.with_context(|| format!("Debian has no {PACKAGE} for {arch}"))?;
        archive.download(PACKAGE, offer, work, &mut |_| {})?
    };
    let package = work.join("package");
    run(apt::command("dpkg-deb").arg("--extract").arg(deb).arg(&package))?;
    for path in ["bin/busybox", "usr/bin/busybox"] {
        if package.join(path).is_file() {
            return fs::read(package.join(path)).with_context(|| format!("cannot read {path}"));
        }
    }
    bail!("{PACKAGE} has no program busybox")
}

/// The names under which the program runs, from its table of names: texts in order, each with a zero
/// byte at its end, and an empty one after the last. A program of another architecture cannot be asked.
pub(crate) fn applets(program: &[u8]) -> Option<Vec<&str>> {
    const START: &[u8] = b"[\0[[\0";
    let table = |at: usize| {
        let names = program[at..].split(|byte| *byte == 0).take_while(|name| !name.is_empty());
        let names: Vec<&str> =
            names.map(|name| std::str::from_utf8(name).ok()).collect::<Option<_>>()?;
        let is_name = |name: &&str| !name.contains('/') && name.is_ascii();
        (names.contains(&"sh") && names.iter().all(is_name)).then_some(names)
    };
    let starts = program.windows(START.len()).enumerate().filter(|(_, window)| *window == START);
    starts.map(|(at, _)| at).find_map(table)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_applets_are_in_the_program() {
        let program = b"\x7fELF\0[\0[[\0text\0\0 [\0[[\0acpid\0sh\0zcat\0\0more\0";
        assert_eq!(applets(program).unwrap(), ["[", "[[", "acpid", "sh", "zcat"]);
        assert_eq!(applets(b"[\0[[\0acpid\0\0"), None, "no shell");
        assert_eq!(applets(b"\x7fELF"), None);
    }
}
