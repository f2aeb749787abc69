//! The agent: built static and small, and refused if it is not.

use std::fs;

use anyhow::{Context, Result, bail};
use boxlite_kernel::Arch;

use crate::build;
use crate::build::cargo_build;
use crate::cross::{Target, Toolchain};
use crate::ui::Step;

/// The agent is loaded into every box: it may have this many bytes.
const SIZE_LIMIT: u64 = 2 << 20;

/// Builds the agent for `arch`; returns the program and its version.
pub(super) fn build(arch: Arch) -> Result<(Vec<u8>, String)> {
    let toolchain = Toolchain::find(Target::Linux(arch))?;
    let step = Step::start("agent");
    step.say("compiling");
    let path = cargo_build("boxlite-agent", |cargo| {
        cargo.args(["--package", "boxlite-agent", "--profile", "agent"]);
        toolchain.configure(cargo, &[]);
    })?;
    let program = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    check(&program).with_context(|| format!("{} cannot be a guest's init", path.display()))?;
    let version = version()?;
    step.done(format!("{arch} {version}, static, {} KiB", program.len().div_ceil(1024)));
    Ok((program, version))
}

/// The version of the agent's package, as its manifest in the workspace has it.
fn version() -> Result<String> {
    build::packages()?
        .into_iter()
        .find_map(|(name, version)| (name == "boxlite-agent").then_some(version))
        .context("the workspace has no package boxlite-agent")
}

/// Refuses a program that is too large, or that needs a loader the guest does not have.
fn check(program: &[u8]) -> Result<()> {
    if program.len() as u64 > SIZE_LIMIT {
        bail!("it has {} bytes, more than {SIZE_LIMIT}", program.len());
    }
    if interpreter(program).context("it is not a 64-bit little-endian ELF file")? {
        bail!("it is linked dynamically");
    }
    Ok(())
}

/// Whether an ELF program asks for an interpreter, which is the dynamic loader; `None` if it is no
/// such program.
fn interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?));
    elf.starts_with(b"\x7fELF\x02\x01").then_some(())?;
    let table = usize::try_from(u64_at(32)?).ok()?;
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    let headers = elf.get(table..table.checked_add(size.checked_mul(count)?)?)?;
    Some(headers.chunks(size.max(1)).any(|header| header.starts_with(&PT_INTERP.to_le_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_refused() {
        // The tests themselves are linked dynamically.
        let program = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(interpreter(&program), Some(true));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        for junk in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01", &[0x7f; 64]] {
            assert!(check(junk).is_err(), "{junk:?}");
        }
        let mut header = b"\x7fELF\x02\x01".to_vec();
        header.resize(64, 0xff);
        assert!(check(&header).is_err(), "a table beyond the end");
        assert!(
            check(&vec![0; SIZE_LIMIT as usize + 1]).unwrap_err().to_string().contains("bytes")
        );
    }
}
