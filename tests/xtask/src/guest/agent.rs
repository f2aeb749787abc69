//! The agent: built static and small, and refused if it is not.

use std::fs;

use anyhow::{Context, Result, bail};
use boxlite_kernel::Arch;
use object::LittleEndian;
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};

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
    if is_dynamic(program).context("it is not a 64-bit little-endian ELF file")? {
        bail!("it is linked dynamically");
    }
    Ok(())
}

/// Whether an ELF program asks for an interpreter, which is the dynamic loader.
fn is_dynamic(program: &[u8]) -> object::Result<bool> {
    let header = FileHeader64::<LittleEndian>::parse(program)?;
    let order = header.endian()?;
    let segments = header.program_headers(order, program)?;
    Ok(segments.iter().any(|segment| segment.p_type(order) == PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_refused() {
        // The tests themselves are linked dynamically.
        let program = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(is_dynamic(&program).unwrap());
    }

    #[test]
    fn what_is_no_program_is_refused() {
        for junk in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01", &[0x7f; 64]] {
            assert!(check(junk).is_err(), "{junk:?}");
        }
        let mut header = b"\x7fELF\x02\x01\x01".to_vec();
        header.resize(64, 0xff);
        assert!(check(&header).is_err(), "a table beyond the end");
        assert!(
            check(&vec![0; SIZE_LIMIT as usize + 1]).unwrap_err().to_string().contains("bytes")
        );
    }
}
