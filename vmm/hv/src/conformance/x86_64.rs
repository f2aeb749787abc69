//! Guest programs of the suite for x86_64: 64-bit mode, identity-mapped, RSI is the argument.

use super::{MEMORY, Pages};
use crate::BootState;

const CODE: usize = 0x1_0000;
const PML4: usize = 0x2_0000;
const PDPT: usize = 0x2_1000;
const PD: usize = 0x2_2000;

const PRESENT_WRITABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 0x80;
const LARGE_PAGE_SIZE: u64 = 2 << 20;

/// Loads program and page tables into memory: the first GiB is identity-mapped.
pub(super) fn load(memory: &Pages, program: &[u8], argument: u64) -> BootState {
    const { assert!(PD + 0x1000 <= MEMORY) };
    let entry = |table: usize, index: usize, value: u64| {
        memory.write(table + index * 8, &value.to_le_bytes());
    };
    entry(PML4, 0, PDPT as u64 | PRESENT_WRITABLE);
    entry(PDPT, 0, PD as u64 | PRESENT_WRITABLE);
    for i in 0..512 {
        entry(PD, i, (i as u64 * LARGE_PAGE_SIZE) | PRESENT_WRITABLE | LARGE_PAGE);
    }
    memory.write(CODE, program);
    BootState::Start { entry: CODE as u64, argument, page_table: PML4 as u64 }
}

/// For 1, 2, 4 and 8 bytes: reads `[rsi]`, writes what it read to `[rsi + 8]`.
pub(super) const COPY_EVERY_WIDTH: &[u8] = &[
    0x8a, 0x06, // mov al, [rsi]
    0x88, 0x46, 0x08, // mov [rsi + 8], al
    0x66, 0x8b, 0x06, // mov ax, [rsi]
    0x66, 0x89, 0x46, 0x08, // mov [rsi + 8], ax
    0x8b, 0x06, // mov eax, [rsi]
    0x89, 0x46, 0x08, // mov [rsi + 8], eax
    0x48, 0x8b, 0x06, // mov rax, [rsi]
    0x48, 0x89, 0x46, 0x08, // mov [rsi + 8], rax
    0xeb, 0xfe, // jmp $
];

/// For 1 and 4 bytes: reads port 0x510, writes what it read to port 0x514.
pub(super) const COPY_PORT: Option<&[u8]> = Some(&[
    0x66, 0xba, 0x10, 0x05, // mov dx, 0x510
    0xec, // in al, dx
    0x66, 0xba, 0x14, 0x05, // mov dx, 0x514
    0xee, // out dx, al
    0x66, 0xba, 0x10, 0x05, // mov dx, 0x510
    0xed, // in eax, dx
    0x66, 0xba, 0x14, 0x05, // mov dx, 0x514
    0xef, // out dx, eax
    0xeb, 0xfe, // jmp $
]);

/// Endlessly copies 4 bytes from `[rsi]` to `[rsi + 64 KiB]`.
pub(super) const COPY_FOREVER: &[u8] = &[
    0x8b, 0x06, // mov eax, [rsi]
    0x89, 0x86, 0x00, 0x00, 0x01, 0x00, // mov [rsi + 0x10000], eax
    0xeb, 0xf6, // jmp -10
];

/// Adds one to the 4 bytes at `[rsi]`.
pub(super) const INCREMENT: &[u8] = &[
    0x8b, 0x06, // mov eax, [rsi]
    0xff, 0xc0, // inc eax
    0x89, 0x06, // mov [rsi], eax
    0xeb, 0xfe, // jmp $
];

/// Writes to `[rsi]`, then to `[rsi + 4 KiB]`.
pub(super) const WRITE_TWO_PAGES: &[u8] = &[
    0x89, 0x06, // mov [rsi], eax
    0x89, 0x86, 0x00, 0x10, 0x00, 0x00, // mov [rsi + 0x1000], eax
    0xeb, 0xfe, // jmp $
];

/// Writes 0, 1, 2, … to `[rsi]`.
pub(super) const COUNT: &[u8] = &[
    0x31, 0xc0, // xor eax, eax
    0x89, 0x06, // mov [rsi], eax
    0xff, 0xc0, // inc eax
    0xeb, 0xfa, // jmp -6
];

/// Loops forever.
pub(super) const SPIN: &[u8] = &[0xeb, 0xfe];

/// A page fault, past what the page tables map, with no interrupt table behind it.
pub(super) const FAULT: &[u8] = &[0x8a, 0x04, 0x25, 0x00, 0x00, 0x00, 0x40]; // mov al, [0x40000000]
