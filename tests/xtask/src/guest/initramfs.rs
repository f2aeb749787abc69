//! The initramfs: a cpio archive in the `newc` form with the agent and a console for it, the same
//! bytes every time.

use std::io::Write;

use anyhow::Result;
use cpio::newc::{self, Builder};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// The archive with `agent` as `/init`.
pub(super) fn archive(agent: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Vec::with_capacity(agent.len() + 1024);
    let device = Builder::new("dev/console").rdev_major(5).rdev_minor(1);
    // The kernel opens the console before the agent has mounted anything.
    let entries = [
        (Builder::new("dev"), DIRECTORY, &[][..]),
        (device, CHARACTER_DEVICE, &[]),
        (Builder::new("init"), PROGRAM, agent),
    ];
    for (inode, (entry, mode, contents)) in (1..).zip(entries) {
        let mut entry = entry
            .ino(inode)
            .mode(mode)
            .nlink(1)
            .write(&mut archive, u32::try_from(contents.len())?);
        entry.write_all(contents)?;
        entry.finish()?;
    }
    newc::trailer(&mut archive)?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use cpio::NewcReader;

    use super::*;

    #[test]
    fn the_kernel_finds_init_and_its_console() {
        let archive = archive(b"agent").unwrap();
        assert!(archive.starts_with(b"070701"), "newc, which is what the kernel reads");
        let mut rest = archive.as_slice();
        let mut seen = Vec::new();
        loop {
            let mut entry = NewcReader::new(rest).unwrap();
            if entry.entry().is_trailer() {
                break;
            }
            let name = entry.entry().name().to_owned();
            let mode = entry.entry().mode();
            let device = (entry.entry().rdev_major(), entry.entry().rdev_minor());
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).unwrap();
            seen.push((name, mode, device, contents));
            rest = entry.finish().unwrap();
        }
        let entry = |name: &str, mode, device, contents: &[u8]| {
            (name.to_owned(), mode, device, contents.to_vec())
        };
        assert_eq!(
            seen,
            [
                entry("dev", 0o040_755, (0, 0), b""),
                entry("dev/console", 0o020_600, (5, 1), b""),
                entry("init", 0o100_755, (0, 0), b"agent"),
            ]
        );
    }
}
