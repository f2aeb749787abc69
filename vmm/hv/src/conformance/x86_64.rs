//! Guest programs of the suite for x86_64: 64-bit mode, identity-mapped, RSI is the argument.

use super::pages::Pages;
use super::{DATA, Extended, SECOND_MMIO};
use crate::BootState;

/// Machine code.
pub(super) type Program = [u8];

/// GPA of the guest's memory.
pub(super) const BASE: u64 = 0;

const CODE: usize = 0x1_0000;
/// What a second vCPU runs, from the page that the startup IPI names.
const SECOND: usize = 0x1_1000;
const PML4: usize = 0x2_0000;
const PDPT: usize = 0x2_1000;
const PD: usize = 0x2_2000;
const PD_OF_CONTROLLERS: usize = 0x2_3000;

const PRESENT_WRITABLE: u64 = 0x3;
const UNCACHED: u64 = 0x18;
const LARGE_PAGE: u64 = 0x80;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
const LARGE_PAGES: u64 = 512;
/// The GiB that has the I/O APIC (0xfec0_0000) and the local APIC (0xfee0_0000).
const CONTROLLERS: u64 = 3;

/// Loads program and page tables into memory: the first GiB is identity-mapped, and that of the interrupt
/// controllers.
pub(super) fn load(memory: &Pages, program: &Program, argument: u64) -> BootState {
    // The programs have these as immediate values.
    const { assert!(DATA == 0x4_0000 && SECOND_MMIO == 0x10_0000) };
    const { assert!(PD_OF_CONTROLLERS + 0x1000 <= DATA) };
    let entry = |table: usize, index: u64, value: u64| {
        memory.write(table + index as usize * 8, &(value | PRESENT_WRITABLE).to_le_bytes());
    };
    entry(PML4, 0, PDPT as u64);
    entry(PDPT, 0, PD as u64);
    entry(PDPT, CONTROLLERS, PD_OF_CONTROLLERS as u64);
    for i in 0..LARGE_PAGES {
        entry(PD, i, (i * LARGE_PAGE_SIZE) | LARGE_PAGE);
        let page = (CONTROLLERS * LARGE_PAGES + i) * LARGE_PAGE_SIZE;
        entry(PD_OF_CONTROLLERS, i, page | LARGE_PAGE | UNCACHED);
    }
    memory.write(CODE, program);
    memory.write(SECOND, STARTED);
    BootState::Start { entry: CODE as u64, argument, page_table: PML4 as u64 }
}

/// For 1, 2, 4 and 8 bytes: reads `[rsi]`, writes what it read to `[rsi + 8]`.
pub(super) const COPY_EVERY_WIDTH: &Program = &[
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

/// Reads `[rsi]` with sign or zero extension, writes the whole register to `[rsi + 8]`, as in [`EXTENDED`].
pub(super) const EXTEND: &Program = &[
    0x48, 0x0f, 0xbe, 0x06, // movsx rax, byte [rsi]
    0x48, 0x89, 0x46, 0x08, // mov [rsi + 8], rax
    0x0f, 0xb6, 0x06, // movzx eax, byte [rsi]
    0x48, 0x89, 0x46, 0x08, // mov [rsi + 8], rax
    0x48, 0x0f, 0xbf, 0x06, // movsx rax, word [rsi]
    0x48, 0x89, 0x46, 0x08, // mov [rsi + 8], rax
    0x0f, 0xb7, 0x06, // movzx eax, word [rsi]
    0x48, 0x89, 0x46, 0x08, // mov [rsi + 8], rax
    0x48, 0x63, 0x06, // movsxd rax, dword [rsi]
    0x48, 0x89, 0x46, 0x08, // mov [rsi + 8], rax
    0x8b, 0x06, // mov eax, [rsi]
    0x48, 0x89, 0x46, 0x08, // mov [rsi + 8], rax
    0xeb, 0xfe, // jmp $
];

/// What [`EXTEND`] reads and writes.
pub(super) const EXTENDED: &[Extended] = &[
    Extended { read: &[0x80], written: 0xffff_ffff_ffff_ff80 },
    Extended { read: &[0x80], written: 0x80 },
    Extended { read: &[0x01, 0x80], written: 0xffff_ffff_ffff_8001 },
    Extended { read: &[0x01, 0x80], written: 0x8001 },
    Extended { read: &[1, 0, 0, 0x80], written: 0xffff_ffff_8000_0001 },
    Extended { read: &[1, 0, 0, 0x80], written: 0x8000_0001 },
];

/// For 1 and 4 bytes: reads port 0x510, writes what it read to port 0x514.
pub(super) const COPY_PORT: Option<&Program> = Some(&[
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
pub(super) const COPY_FOREVER: &Program = &[
    0x8b, 0x06, // mov eax, [rsi]
    0x89, 0x86, 0x00, 0x00, 0x01, 0x00, // mov [rsi + 0x10000], eax
    0xeb, 0xf6, // jmp -10
];

/// Adds one to the 4 bytes at `[rsi]`.
pub(super) const INCREMENT: &Program = &[
    0x8b, 0x06, // mov eax, [rsi]
    0xff, 0xc0, // inc eax
    0x89, 0x06, // mov [rsi], eax
    0xeb, 0xfe, // jmp $
];

/// Writes to `[rsi]`, then to `[rsi + 4 KiB]`.
pub(super) const WRITE_TWO_PAGES: &Program = &[
    0x89, 0x06, // mov [rsi], eax
    0x89, 0x86, 0x00, 0x10, 0x00, 0x00, // mov [rsi + 0x1000], eax
    0xeb, 0xfe, // jmp $
];

/// Writes 0, 1, 2, … to `[rsi]`.
pub(super) const COUNT: &Program = &[
    0x31, 0xc0, // xor eax, eax
    0x89, 0x06, // mov [rsi], eax
    0xff, 0xc0, // inc eax
    0xeb, 0xfa, // jmp -6
];

/// Writes to `[rsi]`, then loops forever.
pub(super) const WRITE_AND_SPIN: &Program = &[
    0x89, 0x06, // mov [rsi], eax
    0xeb, 0xfe, // jmp $
];

/// Endlessly writes the time stamp counter to `[rsi]`.
pub(super) const READ_CLOCK: &Program = &[
    0x0f, 0x31, // rdtsc
    0x48, 0xc1, 0xe2, 0x20, // shl rdx, 32
    0x48, 0x09, 0xd0, // or rax, rdx
    0x48, 0x89, 0x06, // mov [rsi], rax
    0xeb, 0xf2, // jmp -14
];

/// A page fault, past what the page tables map, with no interrupt table behind it.
pub(super) const RESET: &Program = &[0x8a, 0x04, 0x25, 0x00, 0x00, 0x00, 0x40]; // mov al, [0x40000000]

/// Without firmware there is no power switch.
pub(super) const SHUTDOWN: Option<&Program> = None;

/// Timers are not in registers.
pub(super) const TIMERS: Option<(&Program, [u64; 4])> = None;

/// A fault resets.
pub(super) const FAULT: Option<&Program> = None;

/// No exit lacks what is needed to emulate it.
pub(super) const ABORT: Option<(&Program, u32)> = None;

/// Starts vCPU 1 by INIT and startup IPIs, waits until it has written to memory, and writes that to `[rsi]`.
pub(super) const START_SECOND: &Program = &[
    0xbb, 0x00, 0x00, 0xe0, 0xfe, // mov ebx, 0xfee00000
    0xc7, 0x83, 0x10, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x01, // mov dword [rbx + 0x310], 1 << 24
    0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x00, 0x45, 0x00,
    0x00, // mov dword [rbx + 0x300], 0x4500
    0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x11, 0x46, 0x00,
    0x00, // mov dword [rbx + 0x300], 0x4611
    0x8b, 0x04, 0x25, 0x00, 0x00, 0x04, 0x00, // mov eax, [0x40000]
    0x85, 0xc0, // test eax, eax
    0x74, 0xf5, // jz -11
    0x89, 0x06, // mov [rsi], eax
    0xeb, 0xfe, // jmp $
];

/// What the second vCPU runs, in real mode: writes 0x5a to [`DATA`], then 0, 1, 2, … to [`SECOND_MMIO`].
const STARTED: &Program = &[
    0xb8, 0x00, 0x40, // mov ax, 0x4000
    0x8e, 0xd8, // mov ds, ax
    0xc6, 0x06, 0x00, 0x00, 0x5a, // mov byte [0], 0x5a
    0xb8, 0xff, 0xff, // mov ax, 0xffff
    0x8e, 0xd8, // mov ds, ax
    0x66, 0x31, 0xc0, // xor eax, eax
    0x66, 0xa3, 0x10, 0x00, // mov [0x10], eax
    0x66, 0x40, // inc eax
    0xeb, 0xf8, // jmp -8
];

/// Routes pin 16 of the I/O APIC as an edge to vector 0x30, writes to `[rsi]`, waits until the local APIC has the
/// vector pending, and writes the 32 pending bits from 0x20 on to `[rsi]`. Interrupts stay off.
pub(super) const WAIT_FOR_INTERRUPT: &Program = &[
    0xbf, 0x00, 0x00, 0xc0, 0xfe, // mov edi, 0xfec00000
    0xbb, 0x00, 0x00, 0xe0, 0xfe, // mov ebx, 0xfee00000
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00,
    0x00, // mov dword [rbx + 0xf0], 0x1ff
    0xc7, 0x07, 0x31, 0x00, 0x00, 0x00, // mov dword [rdi], 0x31
    0xc7, 0x47, 0x10, 0x00, 0x00, 0x00, 0x00, // mov dword [rdi + 0x10], 0
    0xc7, 0x07, 0x30, 0x00, 0x00, 0x00, // mov dword [rdi], 0x30
    0xc7, 0x47, 0x10, 0x30, 0x00, 0x00, 0x00, // mov dword [rdi + 0x10], 0x30
    0x89, 0x06, // mov [rsi], eax
    0x8b, 0x83, 0x10, 0x02, 0x00, 0x00, // mov eax, [rbx + 0x210]
    0x85, 0xc0, // test eax, eax
    0x74, 0xf6, // jz -10
    0x89, 0x06, // mov [rsi], eax
    0xeb, 0xfe, // jmp $
];

/// Sets registers of the local and the I/O APIC, writes to `[rsi]`, reads the registers and writes them to `[rsi]`:
/// [`CONTROLLER_STATE`].
pub(super) const SET_CONTROLLER: &Program = &[
    0xbf, 0x00, 0x00, 0xc0, 0xfe, // mov edi, 0xfec00000
    0xbb, 0x00, 0x00, 0xe0, 0xfe, // mov ebx, 0xfee00000
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00,
    0x00, // mov dword [rbx + 0xf0], 0x1ff
    0xc7, 0x83, 0x80, 0x00, 0x00, 0x00, 0x20, 0x00, 0x00,
    0x00, // mov dword [rbx + 0x80], 0x20
    0xc7, 0x07, 0x33, 0x00, 0x00, 0x00, // mov dword [rdi], 0x33
    0xc7, 0x47, 0x10, 0x00, 0x00, 0x00, 0x01, // mov dword [rdi + 0x10], 1 << 24
    0xc7, 0x07, 0x32, 0x00, 0x00, 0x00, // mov dword [rdi], 0x32
    0xc7, 0x47, 0x10, 0x35, 0x80, 0x01, 0x00, // mov dword [rdi + 0x10], 0x18035
    0x89, 0x06, // mov [rsi], eax
    0x8b, 0x47, 0x10, // mov eax, [rdi + 0x10]
    0x89, 0x06, // mov [rsi], eax
    0xc7, 0x07, 0x33, 0x00, 0x00, 0x00, // mov dword [rdi], 0x33
    0x8b, 0x47, 0x10, // mov eax, [rdi + 0x10]
    0x89, 0x06, // mov [rsi], eax
    0x8b, 0x83, 0x80, 0x00, 0x00, 0x00, // mov eax, [rbx + 0x80]
    0x89, 0x06, // mov [rsi], eax
    0xeb, 0xfe, // jmp $
];

/// The redirection entry of pin 17 (masked, level-triggered, to APIC 1), and the task priority.
pub(super) const CONTROLLER_STATE: &[u32] = &[0x1_8035, 1 << 24, 0x20];
