//! The page tables a guest kernel starts on: the first GiB, identity-mapped with 2 MiB pages.

use boxlite_devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::layout::PAGE_TABLES;

const PRESENT_WRITABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 0x80;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
const ENTRIES: u64 = 512;
const TABLE_SIZE: u64 = 4096;

/// Writes the tables; returns the address of the top one, for CR3.
pub(super) fn write(memory: &GuestMemory) -> Option<u64> {
    let (pml4, pdpt, pd) = (PAGE_TABLES, PAGE_TABLES + TABLE_SIZE, PAGE_TABLES + 2 * TABLE_SIZE);
    let table = |at: u64, entries: &[u64]| {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        memory.write_slice(&bytes, GuestAddress(at)).ok()
    };
    table(pml4, &[pdpt | PRESENT_WRITABLE])?;
    table(pdpt, &[pd | PRESENT_WRITABLE])?;
    let pages: Vec<u64> =
        (0..ENTRIES).map(|i| (i * LARGE_PAGE_SIZE) | PRESENT_WRITABLE | LARGE_PAGE).collect();
    table(pd, &pages)?;
    Some(pml4)
}
