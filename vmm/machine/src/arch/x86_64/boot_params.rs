//! The zero page: boot parameters for the kernel (Documentation/arch/x86/zero-page.rst).

use std::ops::Range;

use boxlite_devices::GuestMemory;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Address, Bytes, GuestMemoryBackend, GuestMemoryRegion};

use super::layout;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448; // "HdrS"
const LOADER_UNDEFINED: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Writes the zero page.
pub(super) fn write(
    memory: &GuestMemory,
    initramfs: &Range<u64>,
    cmdline_len: usize,
) -> Option<()> {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    params.hdr.cmd_line_ptr = u32::try_from(layout::CMDLINE.raw_value()).ok()?;
    params.hdr.cmdline_size = u32::try_from(cmdline_len).ok()?;
    params.hdr.ramdisk_image = u32::try_from(initramfs.start).ok()?;
    params.hdr.ramdisk_size = u32::try_from(initramfs.end - initramfs.start).ok()?;
    let map = memory_map(memory);
    params.e820_entries = u8::try_from(map.len()).ok()?;
    params.e820_table.get_mut(..map.len())?.copy_from_slice(&map);
    memory.write_obj(params, layout::ZERO_PAGE).ok()
}

/// The e820 map: low memory up to the MP table, then all memory from 1 MiB on.
fn memory_map(memory: &GuestMemory) -> Vec<boot_e820_entry> {
    let entry = |addr, end: u64, r#type| boot_e820_entry { addr, size: end - addr, r#type };
    let mut map = vec![
        entry(0, layout::LOW_MEMORY_END, E820_RAM),
        entry(layout::LOW_MEMORY_END, layout::LOW_RESERVED_END, E820_RESERVED),
    ];
    for region in memory.iter() {
        let start = region.start_addr().max(layout::HIGH_MEMORY).raw_value();
        let end = region.start_addr().raw_value() + region.len();
        map.push(entry(start, end, E820_RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn memory_over_the_gap_is_two_ranges() {
        let regions =
            [(layout::GAP_START.raw_value() as usize, GuestAddress(0)), (1 << 20, layout::GAP_END)];
        let ranges = regions.map(|(len, at)| (at, len));
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let map: Vec<(u64, u64, u32)> = memory_map(&memory)
            .iter()
            .map(|entry| (entry.addr, entry.addr + entry.size, entry.r#type))
            .collect();
        assert_eq!(
            map,
            [
                (0, 0x9_f000, E820_RAM),
                (0x9_f000, 0xa_0000, E820_RESERVED),
                (0x10_0000, 0xd000_0000, E820_RAM),
                (0x1_0000_0000, 0x1_0010_0000, E820_RAM),
            ]
        );
    }
}
