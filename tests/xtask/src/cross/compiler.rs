//! The linker and the C compiler for a target.
//!
//! Where code is only checked, build scripts still compile C. Nothing reads what comes of it: a
//! stand-in makes empty files.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use boxlite_kernel::Arch;

use super::Target;
use crate::{apt, build};

/// The stand-in for a C compiler and archiver: it makes the output it is asked for, empty. The cc
/// crate finds out by `-E` which flags a compiler takes.
const STAND_IN: &str = r#"#!/bin/sh
# Compiles and archives nothing: for code that is checked and never linked.
previous=
for argument; do
    case "$argument" in
    -E) echo clang ;;
    *.a) printf '!<arch>\n' >"$argument" ;;
    -o?*) : >"${argument#-o}" ;;
    esac
    [ "$previous" = -o ] && : >"$argument"
    previous=$argument
done
exit 0
"#;

/// Debian's cross compilers and C libraries.
const X86_64: [&str; 2] = ["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"];
const AARCH64: [&str; 2] = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];

/// The variables that tell cargo and the cc crate of the tools for `target`.
///
/// # Errors
/// Names the packages that have them, if they are missing and this user may not install them.
pub(super) fn variables(target: Target) -> Result<Vec<(String, OsString)>> {
    match target {
        Target::Linux(Arch::HOST) => Ok(Vec::new()),
        Target::Linux(arch) => {
            let (linker, packages) = match arch {
                Arch::X86_64 => ("x86_64-linux-gnu-gcc", X86_64),
                Arch::Aarch64 => ("aarch64-linux-gnu-gcc", AARCH64),
            };
            // The cc crate finds the compiler by its prefix.
            if !links_statically(linker) {
                apt::install(&packages)?;
            }
            Ok(vec![(target.variable("LINKER"), linker.into())])
        }
        Target::Darwin => {
            let program = build::target_dir().join("cross/no-compiler");
            write_stand_in(&program)?;
            let name = target.triple().replace('-', "_");
            let tool = |tool: &str| (format!("{tool}_{name}"), program.clone().into_os_string());
            // With SDKROOT set, nothing looks for Xcode.
            Ok(vec![tool("CC"), tool("CXX"), tool("AR"), ("SDKROOT".to_owned(), "/".into())])
        }
    }
}

/// Whether there is this linker, and a static C library for it.
fn links_statically(linker: &str) -> bool {
    let mut find = Command::new(linker);
    let path = build::output(find.arg("-print-file-name=libc.a")).unwrap_or_default();
    // It answers with the name alone if there is no such file.
    path.starts_with(b"/")
}

fn write_stand_in(program: &Path) -> Result<()> {
    build::write(program, STAND_IN.as_bytes())?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stand_in_makes_what_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("cc");
        write_stand_in(&program).unwrap();
        let run = |arguments: &[&str]| {
            build::output(Command::new(&program).args(arguments).current_dir(&dir)).unwrap()
        };
        assert_eq!(run(&["-E", "probe.c"]), b"clang\n");
        run(&["-c", "x.c", "-o", "x.o"]);
        run(&["-c", "y.c", "-oy.o"]);
        run(&["cqs", "libx.a", "x.o"]);
        assert_eq!(fs::read(dir.path().join("x.o")).unwrap(), b"");
        assert_eq!(fs::read(dir.path().join("y.o")).unwrap(), b"");
        assert_eq!(fs::read(dir.path().join("libx.a")).unwrap(), b"!<arch>\n");
    }
}
