//! The whole boot: files in, memory and boot vCPU out.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use zerocopy::{FromZeros, IntoBytes};

use super::image::Header;
use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const START: u64 = layout::MEMORY_START.0;
const HARDWARE: Hardware<'static> = Hardware { vcpus: 2, devices: &[] };

/// A kernel that occupies 16 MiB.
fn header() -> Header {
    let mut header = Header::new_zeroed();
    header.image_size = (16 * MIB).into();
    header.magic = *b"ARM\x64";
    header
}

/// Boot files in a folder of their own.
struct Files {
    dir: tempfile::TempDir,
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl Files {
    fn new(kernel: &[u8], initramfs: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files =
            Self { kernel: dir.path().join("Image"), initramfs: dir.path().join("initramfs"), dir };
        fs::write(&files.kernel, kernel).unwrap();
        fs::write(&files.initramfs, initramfs).unwrap();
        files
    }

    /// A kernel with this header and some code.
    fn with(header: &Header) -> Self {
        Self::new(&[header.as_bytes(), &[0x5a; 5000]].concat(), &[0xa5; 10_000])
    }

    fn load(&self, memory: u64) -> Result<(GuestMemory, BootState), BootError> {
        self.load_with(memory, "console=ttyS0")
    }

    fn load_with(&self, size: u64, cmdline: &str) -> Result<(GuestMemory, BootState), BootError> {
        let ranges: Vec<_> = layout::memory_ranges(size)
            .into_iter()
            .map(|(start, len)| (start, len as usize))
            .collect();
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let boot = BootFiles { kernel: &self.kernel, initramfs: &self.initramfs, cmdline };
        let state = load(&memory, &HARDWARE, &boot)?;
        Ok((memory, state))
    }
}

/// The addresses of kernel and device tree.
fn places(state: &BootState) -> (u64, u64) {
    match *state {
        BootState::Start { entry, argument, page_table: 0 } => (entry, argument),
        other => panic!("{other:?}"),
    }
}

fn bytes(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn kernel_initramfs_and_tree_are_where_the_boot_protocol_wants_them() {
    for (size, tree) in [
        (128 * MIB, START + 126 * MIB),
        (129 * MIB, START + 126 * MIB),
        (4 * GIB, START + 4 * GIB - 2 * MIB),
        (64 * GIB, START + 32 * GIB - 2 * MIB),
    ] {
        let files = Files::with(&header());
        let (memory, state) = files.load(size).unwrap();
        assert_eq!(places(&state), (START, tree), "{} MiB", size / MIB);
        let kernel = fs::read(&files.kernel).unwrap();
        assert_eq!(bytes(&memory, START, kernel.len()), kernel);
        assert_eq!(bytes(&memory, tree, 4), [0xd0, 0x0d, 0xfe, 0xed]);
        // 10000 bytes take three pages.
        let initramfs = tree - 3 * 4096;
        assert_eq!(bytes(&memory, initramfs, 10_000), [0xa5; 10_000]);
        let blob = bytes(&memory, tree, 4096);
        for value in [initramfs, initramfs + 10_000] {
            assert!(blob.windows(8).any(|word| word == value.to_be_bytes()), "{value:#x}");
        }
    }
}

#[test]
fn an_older_kernel_is_at_its_text_offset() {
    let mut header = header();
    header.text_offset = 0x8_0000.into();
    let (_, state) = Files::with(&header).load(128 * MIB).unwrap();
    assert_eq!(places(&state).0, START + 0x8_0000);
}

#[test]
fn what_is_no_kernel_is_refused() {
    let wrong = |change: &dyn Fn(&mut Header)| {
        let mut header = header();
        change(&mut header);
        Files::with(&header)
    };
    let cases = [
        (Files::new(b"", b""), "no header"),
        (Files::new(&[0; 63], b""), "no header"),
        (Files::new(&[&b"\x7fELF"[..], &[0; 1000]].concat(), b""), "no header"),
        (wrong(&|header| header.magic = *b"ARMe"), "no header"),
        (wrong(&|header| header.image_size = 0.into()), "no image size"),
        (wrong(&|header| header.flags = 0b1011.into()), "big-endian"),
        (wrong(&|header| header.text_offset = (2 * MIB).into()), "text offset"),
    ];
    for (files, fault) in cases {
        match files.load(128 * MIB) {
            Err(BootError::Kernel { path, reason }) => {
                assert_eq!(path, files.kernel);
                assert!(reason.contains(fault), "{reason}: {fault}");
            }
            other => panic!("{fault}: {other:?}"),
        }
    }
    let files = Files::with(&header());
    fs::remove_file(&files.kernel).unwrap();
    assert!(
        matches!(files.load(128 * MIB), Err(BootError::Read { path, .. }) if path == files.kernel)
    );
    assert!(files.dir.path().exists());
}

#[test]
fn what_does_not_fit_is_named() {
    let kernel_of = |size: u64| {
        let mut header = header();
        header.image_size = size.into();
        Files::with(&header)
    };
    let missing = |result: Result<_, BootError>| match result {
        Err(BootError::Memory { what }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(missing(kernel_of(128 * MIB + 1).load(128 * MIB)), "the kernel");
    assert_eq!(missing(kernel_of(u64::MAX).load(128 * MIB)), "the kernel");
    assert_eq!(missing(Files::with(&header()).load(MIB)), "the kernel");
    // Kernel and device tree take all memory.
    assert_eq!(missing(kernel_of(128 * MIB).load(128 * MIB)), "the initramfs");
    assert_eq!(missing(kernel_of(126 * MIB - 3 * 4096 + 1).load(128 * MIB)), "the initramfs");
    kernel_of(126 * MIB - 3 * 4096).load(128 * MIB).unwrap();
    // A kernel that is longer than its header says.
    let long = Files::new(&[header().as_bytes(), &vec![0; 20 << 20]].concat(), b"");
    assert_eq!(missing(long.load(20 * MIB)), "the kernel");
}

#[test]
fn a_command_line_that_the_kernel_would_cut_is_refused() {
    let files = Files::with(&header());
    let longest = "x".repeat(layout::CMDLINE_MAX - 1);
    files.load_with(128 * MIB, &longest).unwrap();
    let longer = longest + "x";
    assert!(matches!(
        files.load_with(128 * MIB, &longer),
        Err(BootError::Cmdline { len: 2048, max: 2047 })
    ));
    assert!(matches!(files.load_with(128 * MIB, "quiet\0panic"), Err(BootError::CmdlineNul)));
}

#[test]
fn the_command_line_has_the_console() {
    assert_eq!(cmdline(HostEnvironment::Nested, &HARDWARE), "console=ttyS0");
}

proptest! {
    /// Whatever a file says of itself, what it is loaded to is memory, and nothing overlaps.
    #[test]
    fn any_header_loads_into_memory_or_is_refused(
        mut bytes in proptest::array::uniform32(any::<u8>()),
        image_size in prop_oneof![any::<u64>(), 0..256 * MIB],
        text_offset in prop_oneof![any::<u64>(), 0..4 * MIB],
        magic in any::<bool>(),
    ) {
        bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
        let mut kernel = bytes.to_vec();
        kernel.resize(64, 0);
        if magic {
            kernel[56..60].copy_from_slice(b"ARM\x64");
        }
        if let Ok((_, state)) = Files::new(&kernel, &[1; 5000]).load(128 * MIB) {
            let (entry, tree) = places(&state);
            prop_assert!(magic && entry == START + text_offset);
            prop_assert!(entry + image_size <= tree - 2 * 4096);
            prop_assert!(tree + FDT_MAX <= START + 128 * MIB);
        }
    }
}
