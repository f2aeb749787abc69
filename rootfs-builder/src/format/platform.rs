//! Platforms of images, and which of them run on this machine.

use std::fmt;

/// Operating system and architecture, in OCI's (Go's) names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    /// Highest microarchitecture level of the CPU: 3 for `amd64/v3`. A box has the CPU of its host.
    level: u8,
}

impl Platform {
    /// The platform of boxes on this machine: Linux, on every host system.
    pub(crate) fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), level: cpu_level() }
    }

    /// Whether an image with this `os` and `architecture` runs here; empty means unspecified.
    pub(crate) fn runs(&self, os: &str, architecture: &str) -> bool {
        (os.is_empty() || os == self.os)
            && (architecture.is_empty()
                || architecture == self.architecture
                || architecture == self.uname_name())
    }

    /// Rank of an image for this variant of the architecture: higher uses more of the CPU; none if
    /// the CPU lacks features that the variant may use.
    pub(crate) fn suits(&self, variant: &str) -> Option<u8> {
        let level = match (&*self.architecture, variant.to_ascii_lowercase().strip_prefix('v')) {
            // The baseline, which every CPU of the architecture has.
            (_, None) if variant.is_empty() => self.least_level(),
            // A variant without a level: unknown, so not assumed.
            (_, None) => return None,
            (_, Some(level)) => level.parse().ok()?,
        };
        (self.least_level()..=self.level).contains(&level).then_some(level)
    }

    /// OpenDir of an image that names none.
    fn least_level(&self) -> u8 {
        if self.architecture == "arm64" { 8 } else { 1 }
    }

    /// The architecture in `uname -m` form, which some tools write into images.
    fn uname_name(&self) -> &str {
        match self.architecture.as_str() {
            "amd64" => "x86_64",
            "arm64" => "aarch64",
            other => other,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// Microarchitecture levels of the x86-64 psABI.
#[cfg(target_arch = "x86_64")]
fn cpu_level() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("cmpxchg16b")
        && has!("popcnt")
        && has!("sse3")
        && has!("sse4.1")
        && has!("sse4.2")
        && has!("ssse3");
    let v3 = v2
        && has!("avx")
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe");
    let v4 = v3
        && has!("avx512f")
        && has!("avx512bw")
        && has!("avx512cd")
        && has!("avx512dq")
        && has!("avx512vl");
    1 + u8::from(v2) + u8::from(v3) + u8::from(v4)
}

/// The baseline of all 64-bit Arm CPUs; `v9` needs features that many lack.
#[cfg(not(target_arch = "x86_64"))]
fn cpu_level() -> u8 {
    8
}

#[cfg(test)]
impl Platform {
    /// A platform for tests.
    pub(crate) fn test(architecture: &str, level: u8) -> Self {
        Self { os: "linux".into(), architecture: architecture.into(), level }
    }
}

#[cfg(test)]
mod tests;
