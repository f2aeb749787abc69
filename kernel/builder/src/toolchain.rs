//! The tools of a kernel build: which are missing, and the compiler's identity.

use std::path::Path;
use std::process::{Command, Stdio};

use boxlite_kernel::Arch;

use crate::command;
use crate::error::{BuildError, MissingTool};

/// Programs that every build runs, with their Debian packages.
const TOOLS: [MissingTool; 10] = [
    tool("gcc", "gcc"),
    tool("ld", "binutils"),
    tool("make", "make"),
    tool("flex", "flex"),
    tool("bison", "bison"),
    tool("bc", "bc"),
    tool("perl", "perl"),
    tool("tar", "tar"),
    tool("xz", "xz-utils"),
    tool("gzip", "gzip"),
];

const fn tool(tool: &'static str, package: &'static str) -> MissingTool {
    MissingTool { tool, package }
}

/// The compiler for an architecture, and the tools of the kernel's makefiles.
#[derive(Clone, Debug)]
pub struct Toolchain {
    arch: Arch,
    /// First lines of the compiler's and linker's `--version`: part of a kernel's key.
    pub(crate) identity: String,
}

impl Toolchain {
    /// The missing tools for a build for `arch`.
    pub fn missing(arch: Arch) -> Vec<MissingTool> {
        let cross = match arch {
            _ if tool_prefix(arch).is_empty() => None,
            Arch::X86_64 => Some(tool("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu")),
            Arch::Aarch64 => Some(tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")),
        };
        let mut missing: Vec<MissingTool> =
            TOOLS.into_iter().chain(cross).filter(|tool| !runs(tool.tool)).collect();
        // objtool, which checks x86 code, reads object files with libelf.
        let lacks_gcc = missing.iter().any(|tool| tool.tool == "gcc");
        if arch == Arch::X86_64 && (lacks_gcc || !has_header("gelf.h")) {
            missing.push(tool("gelf.h", "libelf-dev"));
        }
        if lacks_gcc || !has_header("stdlib.h") {
            missing.push(tool("stdlib.h", "libc6-dev"));
        }
        missing
    }

    /// Finds the toolchain for `arch`.
    ///
    /// # Errors
    /// [`BuildError::MissingTools`] names what is missing and how to install it.
    pub fn find(arch: Arch) -> Result<Self, BuildError> {
        let missing = Self::missing(arch);
        if !missing.is_empty() {
            return Err(BuildError::MissingTools(missing));
        }
        let first_line = |program: &str| -> Result<String, BuildError> {
            let program = format!("{}{program}", tool_prefix(arch));
            let text = command::output(Command::new(program).arg("--version"))?;
            Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
        };
        let identity = format!("{}; {}", first_line("gcc")?, first_line("ld")?);
        Ok(Self { arch, identity })
    }

    /// `make` for the kernel in `source`, with its output in `build`, independent of the caller's
    /// environment.
    pub(crate) fn make(&self, source: &Path, build: &Path) -> Command {
        let mut make = Command::new("make");
        for (name, _) in std::env::vars_os() {
            if steers_kbuild(&name.to_string_lossy()) {
                make.env_remove(name);
            }
        }
        make.env("LC_ALL", "C")
            // Reproducible: the same source gives the same kernel.
            .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
            .env("KBUILD_BUILD_USER", "boxlite")
            .env("KBUILD_BUILD_HOST", "boxlite")
            .env("KBUILD_BUILD_VERSION", "1")
            .arg("-C")
            .arg(source)
            .arg(format!("O={}", build.display()))
            .arg(format!("ARCH={}", kbuild_arch(self.arch)))
            .arg(format!("CROSS_COMPILE={}", tool_prefix(self.arch)));
        make
    }

    /// `strip` for this architecture.
    pub(crate) fn strip(&self) -> Command {
        Command::new(format!("{}strip", tool_prefix(self.arch)))
    }
}

/// The kernel makefiles' name of an architecture (`ARCH=`).
const fn kbuild_arch(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "x86_64",
        Arch::Aarch64 => "arm64",
    }
}

/// The prefix of the compiler and binutils for an architecture (`CROSS_COMPILE=`); empty for this
/// machine's own.
fn tool_prefix(arch: Arch) -> &'static str {
    match arch {
        arch if arch == Arch::HOST => "",
        Arch::X86_64 => "x86_64-linux-gnu-",
        Arch::Aarch64 => "aarch64-linux-gnu-",
    }
}

/// Whether an environment variable changes what the kernel's makefiles do.
fn steers_kbuild(name: &str) -> bool {
    const EXACT: [&str; 18] = [
        "ARCH",
        "SUBARCH",
        "CROSS_COMPILE",
        "CROSS_COMPILE_COMPAT",
        "LLVM",
        "LLVM_IAS",
        "CC",
        "LD",
        "HOSTCC",
        "HOSTCFLAGS",
        "HOSTLDFLAGS",
        "LOCALVERSION",
        "MAKEFLAGS",
        "MFLAGS",
        "KCFLAGS",
        "KCPPFLAGS",
        "KAFLAGS",
        "V",
    ];
    EXACT.contains(&name) || name.starts_with("KBUILD_") || name.starts_with("KCONFIG_")
}

fn runs(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .any(|dir| rustix::fs::access(dir.join(program), rustix::fs::Access::EXEC_OK).is_ok())
    })
}

fn has_header(header: &str) -> bool {
    Command::new("gcc")
        .args(["-E", "-x", "c", "-include", header, "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests;
