//! What the header of a Linux executable says: its architecture, and whether it needs a loader.
//!
//! The file is whatever a user named: every offset and length is checked, and a read has a limit.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use boxlite_kernel::Arch;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, ReadCache};

/// The header of an executable for either architecture.
type Header = FileHeader64<LittleEndian>;

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
    #[error("is not a Linux executable (64-bit ELF)")]
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
    pub(super) fn read(file: &File) -> Result<Self, BadExecutable> {
        // The parser does not tell a fault of the file system from one of the file.
        file.read_at(&mut [0], 0).map_err(BadExecutable::Io)?;
        let file = ReadCache::new(file);
        let header = Header::parse(&file).map_err(|_| BadExecutable::NotElf)?;
        let order = header.endian().map_err(|_| BadExecutable::NotElf)?;
        let arch = match header.e_machine(order) {
            elf::EM_X86_64 => Arch::X86_64,
            elf::EM_AARCH64 => Arch::Aarch64,
            other => return Err(BadExecutable::UnknownMachine(other)),
        };
        if !matches!(header.e_type(order), elf::ET_EXEC | elf::ET_DYN) {
            return Err(BadExecutable::NotExecutable);
        }
        Ok(Self { arch, loader: loader(header, &file)? })
    }
}

/// The path in the segment `PT_INTERP`.
fn loader(header: &Header, file: &ReadCache<&File>) -> Result<Option<PathBuf>, BadExecutable> {
    if header.e_phnum(LittleEndian) > MAX_PROGRAM_HEADERS {
        return Err(BadExecutable::Damaged);
    }
    let segments =
        header.program_headers(LittleEndian, file).map_err(|_| BadExecutable::Damaged)?;
    let Some(segment) = segments.iter().find(|it| it.p_type(LittleEndian) == elf::PT_INTERP) else {
        return Ok(None);
    };
    if segment.p_filesz(LittleEndian) > MAX_PATH {
        return Err(BadExecutable::Damaged);
    }
    match segment.interpreter(LittleEndian, file) {
        Ok(Some(path)) if !path.is_empty() => Ok(Some(OsStr::from_bytes(path).into())),
        _ => Err(BadExecutable::Damaged),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const HEADER: usize = size_of::<Header>();
    const PROGRAM_HEADER: usize = size_of::<elf::ProgramHeader64<LittleEndian>>();

    /// An executable with one program header.
    pub(in super::super) fn elf(machine: u16, loader: Option<&[u8]>) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + PROGRAM_HEADER];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
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
