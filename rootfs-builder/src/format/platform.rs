//! For which machines an image is.

use std::fmt;

/// An operating system and an architecture, in Go's words as OCI has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    /// The highest level of the architecture that the CPU has: 3 for `amd64/v3`. The CPU of a box is
    /// that of its host.
    level: u8,
}

impl Platform {
    /// What runs in a box on this machine: Linux, whatever the host's system is.
    pub(crate) fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), level: cpu_level() }
    }

    /// Whether an image that says this of itself runs here. Empty: it does not say.
    pub(crate) fn runs(&self, os: &str, architecture: &str) -> bool {
        (os.is_empty() || os == self.os)
            && (architecture.is_empty()
                || architecture == self.architecture
                || architecture == self.uname_name())
    }

    /// How well an image of this architecture suits that is for the variant: the more, the better;
    /// none where the CPU lacks something that such an image may use.
    pub(crate) fn suits(&self, variant: &str) -> Option<u8> {
        let level = match (&*self.architecture, variant.to_ascii_lowercase().strip_prefix('v')) {
            // What any CPU of the architecture has.
            (_, None) if variant.is_empty() => self.least_level(),
            // A variant that names no level is none that the CPU is known to have.
            (_, None) => return None,
            (_, Some(level)) => level.parse().ok()?,
        };
        (self.least_level()..=self.level).contains(&level).then_some(level)
    }

    /// The level that an image needs which does not name one.
    fn least_level(&self) -> u8 {
        if self.architecture == "arm64" { 8 } else { 1 }
    }

    /// What `uname -m` calls the architecture: some tools write that into images.
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

/// The levels of the x86-64 psABI.
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

/// Of other architectures, the one that all 64-bit CPUs have; `v9` promises what many lack.
#[cfg(not(target_arch = "x86_64"))]
fn cpu_level() -> u8 {
    8
}

#[cfg(test)]
impl Platform {
    /// A machine of this architecture and level.
    pub(crate) fn test(architecture: &str, level: u8) -> Self {
        Self { os: "linux".into(), architecture: architecture.into(), level }
    }
}

#[cfg(test)]
mod tests;
