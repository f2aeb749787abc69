//! The entitlements in the code signature of a Mach-O executable (`mach-o/loader.h`, `mach-o/fat.h`, `kern/cs_blobs.h`
//! of XNU).
//!
//! The crate `object` finds the signature; the index in it is read here. The signature itself is not verified: the kernel
//! did that when it started the executable, or will. Every offset and length is checked, and a read has a limit.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use object::macho::{self, FatHeader, LinkeditDataCommand, MachHeader64};
use object::read::macho::{FatArch, MachHeader, MachOFatFile32};
use object::{BigEndian, LittleEndian, ReadCache, ReadRef};

type Header = MachHeader64<LittleEndian>;

/// The entitlement without which Hypervisor.framework denies every call.
pub const HYPERVISOR: &str = "com.apple.security.hypervisor";

/// The largest part of a file that is read at once, in bytes: load commands, a signature's index, entitlements.
const MAX_PART: u64 = 1 << 20;

/// More parts of a universal binary or of a signature than any tool writes.
const MAX_COUNT: u32 = 1024;

/// What the code signature of an executable says about [`HYPERVISOR`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// There is no signature.
    Missing,
    /// There is a signature without the entitlement.
    Signed,
    /// The signature has the entitlement.
    Entitled,
}

/// The signature of a file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// The file is no 64-bit Mach-O file for arm64.
    #[error("it is not an arm64 executable for macOS")]
    NotMachO,
    /// The file is damaged.
    #[error("it is a damaged executable")]
    Damaged,
}

use SignatureError::Damaged;

impl Signature {
    /// Reads the signature of an executable for arm64, also in a universal binary.
    ///
    /// # Errors
    /// The file is none, is damaged, or cannot be read.
    pub fn read(file: &File) -> Result<Self, SignatureError> {
        // The parser does not tell a fault of the file system from one of the file.
        file.read_at(&mut [0], 0).map_err(SignatureError::Io)?;
        let file = ReadCache::new(file);
        match signature(&file, slice(&file)?)? {
            None => Ok(Self::Missing),
            Some(blob) => of_blob(&file, blob),
        }
    }
}

/// Part of a file.
#[derive(Clone, Copy, Debug)]
struct Part {
    at: u64,
    len: u64,
}

/// Where the executable for arm64 begins in the file.
fn slice(file: &ReadCache<&File>) -> Result<u64, SignatureError> {
    let header = file.read_at::<FatHeader>(0).map_err(|()| SignatureError::NotMachO)?;
    if header.magic.get(BigEndian) != macho::FAT_MAGIC {
        return Ok(0);
    }
    // Java's class files begin in the same way; they have a version there.
    if header.nfat_arch.get(BigEndian) > MAX_COUNT {
        return Err(SignatureError::NotMachO);
    }
    let universal = MachOFatFile32::parse(file).map_err(|_| Damaged)?;
    let arm = universal.arches().iter().find(|arch| arch.cputype() == macho::CPU_TYPE_ARM64);
    arm.map(|arch| arch.offset().into()).ok_or(SignatureError::NotMachO)
}

/// The part that the load command `LC_CODE_SIGNATURE` names.
fn signature(file: &ReadCache<&File>, start: u64) -> Result<Option<Part>, SignatureError> {
    let header = Header::parse(file, start).map_err(|_| SignatureError::NotMachO)?;
    if !header.is_little_endian() || header.cputype(LittleEndian) != macho::CPU_TYPE_ARM64 {
        return Err(SignatureError::NotMachO);
    }
    if u64::from(header.sizeofcmds(LittleEndian)) > MAX_PART {
        return Err(Damaged);
    }
    let commands = header.load_commands(LittleEndian, file, start).map_err(|_| Damaged)?;
    for command in commands {
        let command = command.map_err(|_| Damaged)?;
        if command.cmd() == macho::LC_CODE_SIGNATURE {
            let part: &LinkeditDataCommand<LittleEndian> = command.data().map_err(|_| Damaged)?;
            let at = start + u64::from(part.dataoff.get(LittleEndian));
            return Ok(Some(Part { at, len: part.datasize.get(LittleEndian).into() }));
        }
    }
    Ok(None)
}

/// Looks for entitlements in an embedded signature, which is an index of parts.
fn of_blob(file: &ReadCache<&File>, blob: Part) -> Result<Signature, SignatureError> {
    const CSMAGIC_EMBEDDED_SIGNATURE: u32 = 0xfade_0cc0;
    const CSMAGIC_EMBEDDED_ENTITLEMENTS: u32 = 0xfade_7171;
    const CSSLOT_ENTITLEMENTS: u32 = 5;
    const HEADER: u64 = 12;
    const ENTRY: u64 = 8;
    let within = |at: u64, len: u64| match at.checked_add(len) {
        Some(end) if end <= blob.len => Ok(Part { at: blob.at + at, len }),
        _ => Err(Damaged),
    };
    let header = bytes(file, within(0, HEADER)?)?;
    let count = be32(header, 8)?;
    if be32(header, 0)? != CSMAGIC_EMBEDDED_SIGNATURE || count > MAX_COUNT {
        return Err(Damaged);
    }
    let index = bytes(file, within(HEADER, u64::from(count) * ENTRY)?)?;
    for entry in index.chunks_exact(ENTRY as usize) {
        if be32(entry, 0)? != CSSLOT_ENTITLEMENTS {
            continue;
        }
        let at = be32(entry, 4)?.into();
        let header = bytes(file, within(at, 8)?)?;
        let len = u64::from(be32(header, 4)?);
        if be32(header, 0)? != CSMAGIC_EMBEDDED_ENTITLEMENTS || len < 8 {
            return Err(Damaged);
        }
        let list = bytes(file, within(at + 8, len - 8)?)?;
        return Ok(if is_true(list, HYPERVISOR) { Signature::Entitled } else { Signature::Signed });
    }
    Ok(Signature::Signed)
}

/// Whether a property list in XML says that `key` is true.
fn is_true(list: &[u8], key: &str) -> bool {
    let Ok(list) = std::str::from_utf8(list) else { return false };
    let key = format!("<key>{key}</key>");
    list.match_indices(&key).any(|(at, _)| {
        let value = list[at + key.len()..].trim_ascii_start();
        value.strip_prefix("<true").is_some_and(|rest| {
            let rest = rest.trim_ascii_start();
            rest.starts_with("/>") || rest.starts_with('>')
        })
    })
}

fn bytes<'f>(file: &'f ReadCache<&File>, part: Part) -> Result<&'f [u8], SignatureError> {
    if part.len > MAX_PART {
        return Err(Damaged);
    }
    file.read_bytes_at(part.at, part.len).map_err(|()| Damaged)
}

fn be32(bytes: &[u8], at: usize) -> Result<u32, SignatureError> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(Damaged)?;
    Ok(u32::from_be_bytes(word))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn plist(value: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<plist version=\"1.0\">\n<dict>\n\
             \t<key>com.apple.security.cs.debugger</key>\n\t<true/>\n\t<key>{HYPERVISOR}</key>\n\t{value}\n</dict></plist>\n"
        )
    }

    fn be(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    fn le(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// A signature with a code directory, and these entitlements.
    fn blob(entitlements: Option<&str>) -> Vec<u8> {
        let directory = be(&[0xfade_0c02, 12, 0]);
        let Some(list) = entitlements else {
            let index = be(&[0xfade_0cc0, 20 + directory.len() as u32, 1, 0, 20]);
            return [index, directory].concat();
        };
        let at = 28 + directory.len() as u32;
        let len = 8 + list.len() as u32;
        let index = be(&[0xfade_0cc0, at + len, 2, 0, 28, 5, at]);
        [index, directory, be(&[0xfade_7171, len]), list.as_bytes().to_vec()].concat()
    }

    /// An executable with two load commands, and a signature if there is one.
    fn mach_o(signature: Option<&[u8]>) -> Vec<u8> {
        let uuid = le(&[0x1b, 24, 1, 2, 3, 4]);
        let (count, size) = if signature.is_some() { (2, 40) } else { (1, 24) };
        let header = le(&[0xfeed_facf, macho::CPU_TYPE_ARM64, 0, 2, count, size, 0, 0]);
        let Some(signature) = signature else { return [header, uuid].concat() };
        let command = le(&[0x1d, 16, 32 + size, signature.len() as u32]);
        [header, uuid, command, signature.to_vec()].concat()
    }

    fn universal(arm: &[u8]) -> Vec<u8> {
        let intel = [7_u8; 40];
        let header = be(&[0xcafe_babe, 2, 0x0100_0007, 3, 48, 40, 0, macho::CPU_TYPE_ARM64, 0, 88]);
        [header, be(&[arm.len() as u32, 0]), intel.to_vec(), arm.to_vec()].concat()
    }

    fn read(bytes: &[u8]) -> Result<Signature, SignatureError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Signature::read(&file)
    }

    #[test]
    fn the_entitlement_is_found_in_the_signature() {
        for (value, expected) in [
            ("<true/>", Signature::Entitled),
            ("<true />", Signature::Entitled),
            ("<true></true>", Signature::Entitled),
            ("<false/>", Signature::Signed),
            ("<string>true</string>", Signature::Signed),
            ("<trueish/>", Signature::Signed),
        ] {
            let executable = mach_o(Some(&blob(Some(&plist(value)))));
            assert_eq!(read(&executable).unwrap(), expected, "{value}");
            assert_eq!(read(&universal(&executable)).unwrap(), expected, "{value}");
        }
        assert_eq!(read(&mach_o(Some(&blob(None)))).unwrap(), Signature::Signed);
        assert_eq!(read(&mach_o(None)).unwrap(), Signature::Missing);
    }

    #[test]
    fn other_files_are_named() {
        for other in [&b""[..], b"#!/bin/sh\n", b"\x7fELF", &universal(b"x")[..48]] {
            assert!(matches!(read(other), Err(SignatureError::NotMachO)), "{other:?}");
        }
        let linux = File::open(std::env::current_exe().unwrap()).unwrap();
        if cfg!(target_os = "linux") {
            assert!(matches!(Signature::read(&linux), Err(SignatureError::NotMachO)));
        }
    }

    #[test]
    fn a_part_beyond_its_whole_is_damage() {
        let good = mach_o(Some(&blob(Some(&plist("<true/>")))));
        let damaged = |at: usize, bytes: [u8; 4]| {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&bytes);
            read(&bad)
        };
        // Size of the load commands, size of the first, place of the signature.
        for at in [20, 36, 64] {
            assert!(matches!(damaged(at, [0xff; 4]), Err(Damaged)), "{at}");
        }
        assert!(matches!(damaged(36, [0; 4]), Err(Damaged)), "a load command without a size");
        // In the signature: number of parts, place of the entitlements, their length.
        for at in [72 + 8, 72 + 24, 72 + 44] {
            assert!(matches!(damaged(at, [0xff; 4]), Err(Damaged)), "{at}");
        }
    }

    proptest! {
        #[test]
        fn no_file_is_a_panic(
            noise in prop::collection::vec((0_usize..400, any::<u8>()), 0..12),
            cut in 0_usize..600,
            fat: bool,
        ) {
            let mut bytes = mach_o(Some(&blob(Some(&plist("<true/>")))));
            if fat {
                bytes = universal(&bytes);
            }
            for (at, byte) in noise {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            bytes.truncate(cut);
            let _ = read(&bytes);
        }
    }
}
