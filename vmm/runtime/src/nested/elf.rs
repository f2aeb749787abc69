//! What the header of a Linux executable says: its architecture, and whether it needs a loader.
//!
//! The file is whatever a user named: every offset and length is checked, and a read has a limit.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use boxlite_kernel::Arch;

/// Size of the header of a 64-bit file.
const HEADER: usize = 64;

/// Size of a program header of a 64-bit file.
const PROGRAM_HEADER: usize = 56;

/// More program headers than any linker writes.
const MAX_PROGRAM_HEADERS: u16 = 128;

/// The longest path of a loader, as the kernel limits it (`PATH_MAX`).
const MAX_PATH: u64 = 4096;

/// An executable for Linux.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Executable {
    pub(super) arch: Arch,
    /// The dynamic loader; none for a statically linked program.
    pub(super) loader: Option<PathBuf>,
}

/// Why a file is no executable that the nested host can run.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadExecutable {
    #[error("cannot be read: {0}")]
    Io(#[source] io::Error),
    #[error("is not a Linux executable (ELF)")]
    NotElf,
    #[error("is a library or an object file, no executable")]
    NotExecutable,
    #[error("is for another architecture than x86_64 and aarch64 (ELF machine {0})")]
    UnknownMachine(u16),
    #[error("is a damaged executable")]
    Damaged,
}

impl Executable {
    /// Reads the headers (System V ABI, "ELF Header" and "Program Header").
    pub(super) fn read(file: &impl FileExt) -> Result<Self, BadExecutable> {
        const TWO_LITTLE_ENDIAN: [u8; 2] = [2, 1];
        const ET_EXEC: u16 = 2;
        const ET_DYN: u16 = 3;
        let header: [u8; HEADER] = read_at(file, 0).map_err(|e| match e {
            BadExecutable::Damaged => BadExecutable::NotElf,
            e => e,
        })?;
        // 64-bit, least significant byte first, as both architectures are.
        if !header.starts_with(b"\x7fELF") || header[4..6] != TWO_LITTLE_ENDIAN {
            return Err(BadExecutable::NotElf);
        }
        let arch = match le16(&header, 18) {
            62 => Arch::X86_64,
            183 => Arch::Aarch64,
            other => return Err(BadExecutable::UnknownMachine(other)),
        };
        if !matches!(le16(&header, 16), ET_EXEC | ET_DYN) {
            return Err(BadExecutable::NotExecutable);
        }
        Ok(Self { arch, loader: loader(file, &header)? })
    }
}

/// The path in the segment `PT_INTERP`.
fn loader(file: &impl FileExt, header: &[u8; HEADER]) -> Result<Option<PathBuf>, BadExecutable> {
    const PT_INTERP: u32 = 3;
    let (at, size, count) = (le64(header, 32), le16(header, 54), le16(header, 56));
    if count > MAX_PROGRAM_HEADERS || (count > 0 && usize::from(size) != PROGRAM_HEADER) {
        return Err(BadExecutable::Damaged);
    }
    for index in 0..u64::from(count) {
        let at = at.checked_add(index * PROGRAM_HEADER as u64).ok_or(BadExecutable::Damaged)?;
        let segment: [u8; PROGRAM_HEADER] = read_at(file, at)?;
        if le32(&segment, 0) != PT_INTERP {
            continue;
        }
        let (at, len) = (le64(&segment, 8), le64(&segment, 32));
        if !(2..=MAX_PATH).contains(&len) {
            return Err(BadExecutable::Damaged);
        }
        let mut path = vec![0; usize::try_from(len).map_err(|_| BadExecutable::Damaged)?];
        fill(file, &mut path, at)?;
        path.truncate(path.iter().position(|byte| *byte == 0).ok_or(BadExecutable::Damaged)?);
        return Ok(Some(OsString::from_vec(path).into()));
    }
    Ok(None)
}

fn read_at<const N: usize>(file: &impl FileExt, at: u64) -> Result<[u8; N], BadExecutable> {
    let mut bytes = [0; N];
    fill(file, &mut bytes, at)?;
    Ok(bytes)
}

fn fill(file: &impl FileExt, bytes: &mut [u8], at: u64) -> Result<(), BadExecutable> {
    // A larger offset is negative for the kernel.
    if at > i64::MAX.cast_unsigned() {
        return Err(BadExecutable::Damaged);
    }
    file.read_exact_at(bytes, at).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => BadExecutable::Damaged,
        _ => BadExecutable::Io(e),
    })
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::File;
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// An executable with one program header.
    pub(in super::super) fn elf(machine: u16, loader: Option<&[u8]>) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + PROGRAM_HEADER];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16] = 3;
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = HEADER as u8;
        bytes[54] = PROGRAM_HEADER as u8;
        bytes[56] = 1;
        bytes[HEADER] = 1;
        if let Some(loader) = loader {
            bytes[HEADER] = 3;
            bytes[HEADER + 8] = bytes.len() as u8;
            bytes[HEADER + 32] = loader.len() as u8;
            bytes.extend(loader);
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Executable, String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Executable::read(&file).map_err(|e| e.to_string())
    }

    #[test]
    fn architecture_and_loader_are_read() {
        let of = |arch, loader: Option<&str>| Executable { arch, loader: loader.map(Into::into) };
        assert_eq!(read(&elf(62, None)).unwrap(), of(Arch::X86_64, None));
        let dynamic = elf(183, Some(b"/lib/ld-linux-aarch64.so.1\0"));
        let expected = of(Arch::Aarch64, Some("/lib/ld-linux-aarch64.so.1"));
        assert_eq!(read(&dynamic).unwrap(), expected);
        assert_eq!(
            Executable::read(&File::open("/proc/self/exe").unwrap()).unwrap().arch,
            Arch::HOST
        );
    }

    #[test]
    fn other_files_are_refused() {
        let refused = |bytes: &[u8]| read(bytes).unwrap_err();
        assert!(refused(b"#!/bin/sh\n").contains("ELF"));
        assert!(refused(&[0; 200]).contains("ELF"));
        assert!(refused(&elf(243, None)).contains("machine 243"));
        let mut thirty_two_bits = elf(62, None);
        thirty_two_bits[4] = 1;
        assert!(refused(&thirty_two_bits).contains("ELF"));
        let mut object = elf(62, None);
        object[16] = 1;
        assert!(refused(&object).contains("object file"));
        assert!(refused(&elf(62, None)[..100]).contains("damaged"));
        assert!(refused(&elf(62, Some(b"no end"))).contains("damaged"));
        assert!(refused(&elf(62, Some(b""))).contains("damaged"));
        assert!(Executable::read(&File::open("/").unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            at in 0..400_usize,
        ) {
            let mut file = elf(183, Some(b"/lib/ld\0"));
            for (index, byte) in bytes.iter().enumerate() {
                let index = at + index;
                if (20..file.len()).contains(&index) {
                    file[index] = *byte;
                }
            }
            let _ = read(&file);
            let _ = read(&bytes);
        }
    }
}
