//! The empty disk that every base disk starts from: a small ext4 file system that grows online to
//! any size.

use std::fs::File;

use anyhow::{Context, Result};
use boxlite_kernel::TEMPLATE_SIZE;

use crate::apt;
use crate::build::run;

/// What the file system has, whatever this machine's mke2fs.conf says: ext4 as kernels since 6.1
/// mount and grow it. `64bit` lets it grow past 16 TiB.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
                        flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,\
                        metadata_csum";
/// Tables that are not written need no zeroes: the disk below reads as zeroes.
const OPTIONS: &str = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0";
/// Fixed, so that the template is the same bytes every time.
const UUID: &str = "b0871773-d15c-4e3a-8f5b-5ca1ab1e0001";
const HASH_SEED: &str = "b0871773-d15c-4e3a-8f5b-5ca1ab1e0002";
/// Inodes for each 128 MiB of the grown disk: one for 16 KiB. (By mke2fs's own rule, a disk this
/// small gets so few that the grown one runs out of them.)
const INODES: &str = "8192";
/// In MiB. Every box writes through all of it, into its own overlay, so it is small.
const JOURNAL: &str = "size=8";

/// The template, compressed.
pub(super) fn make() -> Result<Vec<u8>> {
    apt::ensure(&[("mke2fs", "e2fsprogs")])?;
    let disk = tempfile::NamedTempFile::new().context("cannot make a temporary disk")?;
    disk.as_file().set_len(TEMPLATE_SIZE)?;
    let mut mke2fs = apt::command("mke2fs");
    mke2fs
        .env("LC_ALL", "C")
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("E2FSPROGS_FAKE_TIME", "1")
        .args(["-q", "-F", "-b", "4096", "-I", "256", "-m", "0"])
        .args(["-N", INODES, "-O", FEATURES, "-J", JOURNAL, "-U", UUID])
        .args(["-E", &format!("hash_seed={HASH_SEED},{OPTIONS}")])
        .arg(disk.path());
    run(&mut mke2fs)?;
    // Deterministic as the input is: one level, one thread, no time stamp.
    zstd::encode_all(File::open(disk.path())?, 19).context("cannot compress the template")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_small_whole_and_the_same_every_time() {
        if apt::find("mke2fs").is_none() {
            eprintln!("skipped: no mke2fs");
            return;
        }
        let first = make().unwrap();
        assert!(first.len() < 16 << 10, "{} bytes", first.len());
        assert_eq!(first, make().unwrap());
        let disk = zstd::decode_all(first.as_slice()).unwrap();
        assert_eq!(disk.len() as u64, TEMPLATE_SIZE);
        assert_eq!(disk[0x438..0x43a], [0x53, 0xef], "ext4's magic");
        let inodes_per_group = u32::from_le_bytes(disk[0x428..0x42c].try_into().unwrap());
        assert_eq!(inodes_per_group.to_string(), INODES);
    }
}
