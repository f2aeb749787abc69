//! Recovers a qcow2 image whose writer was killed, before anything is written to it again.
//!
//! imago writes an entry of the L1 table at once, and the refcount of the L2 table that the entry
//! points to only at the next flush. If the process is killed in between, the L2 table lies in a
//! cluster that counts as free, and the next allocation would overwrite it. So recovery marks every
//! cluster of the file as used. Clusters that were really free stay allocated and unused; nothing
//! else changes. (QEMU's docs/interop/qcow2.txt, "Host cluster management")

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Offsets of header fields, which are big endian.
const CLUSTER_BITS: u64 = 20;
const REFCOUNT_TABLE: u64 = 48;
const REFCOUNT_TABLE_CLUSTERS: u64 = 56;
const REFCOUNT_ORDER: u64 = 96;
const VERSION: u64 = 4;

/// Bits of a refcount table entry that are not part of the offset.
const RESERVED: u64 = 0x1ff;

/// Size of a refcount of order 4, the only order that is supported here, in bytes.
const WIDTH: u64 = 2;

/// Marks all clusters of the file as used.
pub(super) fn mark_clusters_used(file: &File) -> io::Result<()> {
    let bits = u32_at(file, CLUSTER_BITS)?;
    let order = if u32_at(file, VERSION)? < 3 { 4 } else { u32_at(file, REFCOUNT_ORDER)? };
    if !(9..=21).contains(&bits) || order != 4 {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "its writer was killed, and an image with this cluster size or refcount order cannot be \
             recovered here: run `qemu-img check -r all` on it",
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
        raise_refcounts(file, block, count)?;
        number += 1;
    }
    Ok(())
}

/// Raises the first `count` refcounts of a block to at least 1.
fn raise_refcounts(file: &File, block: u64, count: u64) -> io::Result<()> {
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
