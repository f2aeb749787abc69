//! Making a qcow2 image safe to write to after its writer was killed.
//!
//! The image library writes an entry of the L1 table at once, and the refcount of the L2 table that it leads
//! to at the next flush only. When the process is killed between the two, the L2 table stands in a cluster that
//! counts as free, and the next allocation would overwrite it. So every cluster that the file has is made
//! to count as used. What was really free below the end of the file is lost to the image; nothing else
//! changes. (QEMU's docs/interop/qcow2.txt, "Host cluster management")

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where the header has its fields, big endian.
const CLUSTER_BITS: u64 = 20;
const REFCOUNT_TABLE: u64 = 48;
const REFCOUNT_TABLE_CLUSTERS: u64 = 56;
const REFCOUNT_ORDER: u64 = 96;
const VERSION: u64 = 4;

/// Bits of an entry of the refcount table that are no offset.
const RESERVED: u64 = 0x1ff;

/// Bytes of a refcount of order 4, the only one that is written here.
const WIDTH: u64 = 2;

/// Makes all clusters of the file count as used.
pub(super) fn count_all_clusters(file: &File) -> io::Result<()> {
    let bits = u32_at(file, CLUSTER_BITS)?;
    let order = if u32_at(file, VERSION)? < 3 { 4 } else { u32_at(file, REFCOUNT_ORDER)? };
    if !(9..=21).contains(&bits) || order != 4 {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "its writer was killed, and it is not of the kind that can be recovered here: run \
             `qemu-img check -r all` on it",
        ));
    }
    let cluster = 1_u64 << bits;
    let table = u64_at(file, REFCOUNT_TABLE)?;
    let entries = u64::from(u32_at(file, REFCOUNT_TABLE_CLUSTERS)?) * cluster / 8;
    let per_block = cluster / WIDTH;
    let mut clusters = file.metadata()?.len().div_ceil(cluster);
    let mut number = 0;
    while number * per_block < clusters {
        if number >= entries {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its refcount table is too small",
            ));
        }
        let entry = table + number * 8;
        let mut block = u64_at(file, entry)? & !RESERVED;
        if block == 0 {
            block = clusters * cluster;
            clusters += 1;
            file.set_len(clusters * cluster)?;
            file.write_all_at(&block.to_be_bytes(), entry)?;
        }
        let count = per_block.min(clusters - number * per_block);
        count_all(file, block, count)?;
        number += 1;
    }
    Ok(())
}

/// Makes the first `count` refcounts of a block at least 1.
fn count_all(file: &File, block: u64, count: u64) -> io::Result<()> {
    let mut bytes = vec![0; usize::try_from(count * WIDTH).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, block)?;
    let mut changed = false;
    for refcount in bytes.chunks_exact_mut(WIDTH as usize) {
        if refcount == [0, 0] {
            refcount.copy_from_slice(&1_u16.to_be_bytes());
            changed = true;
        }
    }
    if changed { file.write_all_at(&bytes, block) } else { Ok(()) }
}

fn u32_at(file: &File, offset: u64) -> io::Result<u32> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(u32::from_be_bytes(bytes))
}

fn u64_at(file: &File, offset: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(u64::from_be_bytes(bytes))
}
