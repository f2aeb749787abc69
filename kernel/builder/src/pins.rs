//! The pinned kernel sources: version and SHA-256, per long-term series.
//!
//! To move a pin: change the line, build (`cargo xtask guest`), run the tests.

use crate::version::Lts;

/// The pinned sources of one series.
pub(crate) struct Pins {
    pub(crate) kernel_org: KernelOrg,
    pub(crate) debian: Debian,
}

/// A release of kernel.org.
pub(crate) struct KernelOrg {
    pub(crate) version: &'static str,
    /// SHA-256 of `linux-VERSION.tar.xz`.
    pub(crate) sha256: &'static str,
}

/// A source package of Debian. The archive keeps a version for some months only.
pub(crate) struct Debian {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
    /// SHA-256 of the `.deb`.
    pub(crate) deb_sha256: &'static str,
    /// SHA-256 of the tarball in it.
    pub(crate) tarball_sha256: &'static str,
}

impl Lts {
    pub(crate) const fn pins(self) -> Pins {
        match self {
            Self::V6_12 => Pins {
                kernel_org: KernelOrg {
                    version: "6.12.64",
                    sha256: "d1ad94a33681148efe884f4028970d69e332f2b003f0e8be53a1d25de38e49a2",
                },
                debian: Debian {
                    package: "linux-source-6.12",
                    version: "6.12.117-1~deb12u1",
                    deb_sha256: "e849faf31ca3555757f3a8877cb01af92122f744f75d1f3102734651c4e14703",
                    tarball_sha256: "585a4a074597aefa2b1a68ada83a3184ba351c127544dea80618bbcceaa3961f",
                },
            },
            Self::V6_1 => Pins {
                kernel_org: KernelOrg {
                    version: "6.1.159",
                    sha256: "1f207ebe93980829ecc0a18b694816f22b715e9893767731651969a168342b9e",
                },
                debian: Debian {
                    package: "linux-source-6.1",
                    version: "6.1.192-2",
                    deb_sha256: "ae95fe63d4c553f8d0e6c86cb1ab566f3894a43743eb19ab585cd97d82f26514",
                    tarball_sha256: "4d415b3d364834fd818270e88813e90323bbfce4f519a0e6bd4940ddcd7df693",
                },
            },
        }
    }
}

#[cfg(test)]
mod tests;
