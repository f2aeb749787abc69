//! The MP table (Intel MultiProcessor Specification 1.4): processors and interrupts for a guest
//! without ACPI.

use boxlite_devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::layout::{IO_APIC, LOCAL_APIC, MP_POINTER, MP_TABLE};

const SPEC_REVISION: u8 = 4;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const IO_APIC_PINS: u8 = 24;
const HEADER_LEN: usize = 44;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const ENABLED: u8 = 1;
const BOOTSTRAP: u8 = 2;
const ISA_BUS: u8 = 0;
const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Writes the table and the pointer to it.
pub(super) fn write(memory: &GuestMemory, vcpus: u8) -> Option<()> {
    let table = table(vcpus);
    if MP_TABLE + table.len() as u64 > MP_POINTER {
        return None;
    }
    memory.write_slice(&table, GuestAddress(MP_TABLE)).ok()?;
    memory.write_slice(&pointer(), GuestAddress(MP_POINTER)).ok()
}

/// The MP floating pointer structure (section 4.1).
fn pointer() -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend((MP_TABLE as u32).to_le_bytes());
    // Length in 16-byte units, revision, checksum, and no default configuration.
    bytes.extend([1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes
}

/// The MP configuration table (section 4.2).
fn table(vcpus: u8) -> Vec<u8> {
    // The I/O APIC takes the first APIC ID that no processor has.
    let io_apic = vcpus;
    let mut entries = Vec::new();
    for id in 0..vcpus {
        let flags = if id == 0 { ENABLED | BOOTSTRAP } else { ENABLED };
        entries.extend([ENTRY_PROCESSOR, id, LOCAL_APIC_VERSION, flags]);
        // Signature and features: kernels ask CPUID. Then 8 reserved bytes.
        entries.extend([0; 16]);
    }
    entries.extend([ENTRY_BUS, ISA_BUS]);
    entries.extend(b"ISA   ");
    entries.extend([ENTRY_IO_APIC, io_apic, IO_APIC_VERSION, ENABLED]);
    entries.extend(IO_APIC.to_le_bytes());
    for pin in 0..IO_APIC_PINS {
        // Polarity and trigger mode as the bus has it: ISA, active high, edge.
        entries.extend([ENTRY_IO_INTERRUPT, INTERRUPT_VECTORED, 0, 0, ISA_BUS, pin, io_apic, pin]);
    }
    entries.extend([ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTINT, 0, 0, ISA_BUS, 0, 0, 0]);
    entries.extend([ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);
    let count = u16::from(vcpus) + 1 + 1 + u16::from(IO_APIC_PINS) + 2;

    let mut table = b"PCMP".to_vec();
    table.extend(((HEADER_LEN + entries.len()) as u16).to_le_bytes());
    table.extend([SPEC_REVISION, 0]);
    table.extend(b"BOXLITE BOX         ");
    // No OEM table.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    // No extended table.
    table.extend([0; 4]);
    debug_assert_eq!(table.len(), HEADER_LEN);
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// The byte that makes all bytes add up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_lengths_hold_for_every_size() {
        for vcpus in 1..=64 {
            let table = table(vcpus);
            assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert!(MP_TABLE + table.len() as u64 <= MP_POINTER, "{vcpus} vCPUs");
            // Walk the entries as a kernel does.
            let (mut at, mut count, mut processors) = (HEADER_LEN, 0, 0);
            while at < table.len() {
                processors += u16::from(table[at] == ENTRY_PROCESSOR);
                at += if table[at] == ENTRY_PROCESSOR { 20 } else { 8 };
                count += 1;
            }
            assert_eq!((at, processors), (table.len(), vcpus.into()));
            assert_eq!(u16::from_le_bytes([table[34], table[35]]), count);
        }
        assert_eq!(pointer().iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(pointer().len(), 16);
    }
}
