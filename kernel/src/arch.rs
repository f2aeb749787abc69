//! The two architectures of a guest and what the kernel's build calls them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A guest architecture, written as `uname -m` writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// The architecture this program was compiled for: the one it can run boxes of.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// The name, as `uname -m` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The kernel's file name among the guest files: an uncompressed ELF file or a raw image.
    pub const fn kernel_file(self) -> &'static str {
        match self {
            Self::X86_64 => "vmlinux",
            Self::Aarch64 => "Image",
        }
    }

    /// What the kernel's makefiles call it (`ARCH=`).
    pub(crate) const fn kbuild_name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Where the build leaves the kernel, and the make target's name.
    pub(crate) const fn kbuild_output(self) -> (&'static str, &'static str) {
        match self {
            Self::X86_64 => ("vmlinux", "vmlinux"),
            Self::Aarch64 => ("Image", "arch/arm64/boot/Image"),
        }
    }

    /// The prefix of the compiler and binutils that produce code for it (`CROSS_COMPILE=`).
    pub(crate) fn tool_prefix(self) -> &'static str {
        match self {
            arch if arch == Self::HOST => "",
            Self::X86_64 => "x86_64-linux-gnu-",
            Self::Aarch64 => "aarch64-linux-gnu-",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An architecture that boxes do not run on.
#[derive(Debug, thiserror::Error)]
#[error("unknown architecture {0:?}: use x86_64 or aarch64")]
pub struct UnknownArch(String);

impl FromStr for Arch {
    type Err = UnknownArch;

    fn from_str(name: &str) -> Result<Self, UnknownArch> {
        [Self::X86_64, Self::Aarch64]
            .into_iter()
            .find(|arch| arch.name() == name)
            .ok_or_else(|| UnknownArch(name.to_owned()))
    }
}
