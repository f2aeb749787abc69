//! Platforms of images, and which of them run on this machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A platform that a caller asks for, `OS/ARCHITECTURE[/VARIANT]`: `linux/arm64`, `linux/amd64/v2`. Names are OCI's; an
/// architecture may also have its name in `uname -m`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImagePlatform {
    os: String,
    architecture: String,
    /// Empty if there is none.
    variant: String,
}

impl ImagePlatform {
    /// The operating system: `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The architecture: `amd64`, `arm64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The variant of the architecture: `v8`.
    pub fn variant(&self) -> Option<&str> {
        (!self.variant.is_empty()).then_some(&self.variant)
    }
}

impl FromStr for ImagePlatform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let lower = text.to_ascii_lowercase();
        let is_word = |part: &&str| {
            let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            (1..=MAX_WORD).contains(&part.len()) && part.chars().all(is_good)
        };
        let parts: Vec<&str> = lower.split('/').collect();
        let (os, architecture, variant) = match *parts {
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] if is_word(&variant) => (os, architecture, variant),
            _ => return Err(InvalidPlatform),
        };
        if !is_word(&os) || !is_word(&architecture) {
            return Err(InvalidPlatform);
        }
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self { os: os.into(), architecture: architecture.into(), variant: variant.into() })
    }
}

impl TryFrom<String> for ImagePlatform {
    type Error = InvalidPlatform;

    fn try_from(text: String) -> Result<Self, InvalidPlatform> {
        text.parse()
    }
}

impl From<ImagePlatform> for String {
    fn from(platform: ImagePlatform) -> Self {
        platform.to_string()
    }
}

impl fmt::Display for ImagePlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_platform(f, &self.os, &self.architecture, &self.variant)
    }
}

/// A text is no [`ImagePlatform`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a platform is OS/ARCHITECTURE, optionally with /VARIANT, as in linux/arm64 or linux/amd64/v2"
)]
pub struct InvalidPlatform;

/// The longest part of a platform.
const MAX_WORD: usize = 40;

/// Operating system and architecture, in OCI's (Go's) names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    /// The variant that was asked for; empty: none.
    variant: String,
    /// Highest microarchitecture level of the CPU: 3 for `amd64/v3`. A box has the CPU of its host. Lower if a lower
    /// one was asked for.
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
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: String::new(),
            level: cpu_level(),
        }
    }

    /// This platform with no other variants than `wanted` allows; none if boxes here cannot run `wanted`.
    pub(crate) fn narrowed(&self, wanted: &ImagePlatform) -> Option<Self> {
        if wanted.os != self.os || wanted.architecture != self.architecture {
            return None;
        }
        let Some(variant) = wanted.variant() else { return Some(self.clone()) };
        let level = self.suits(variant)?;
        Some(Self { variant: variant.into(), level, ..self.clone() })
    }

    /// Whether an image of this variant may be used. Only a variant that was asked for excludes others: an image that a
    /// user names, and that has no alternative, may be for more than the CPU has.
    pub(crate) fn allows(&self, variant: &str) -> bool {
        self.variant.is_empty() || self.suits(variant).is_some()
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

    /// Level of an image that names none.
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
        write_platform(f, &self.os, &self.architecture, &self.variant)
    }
}

fn write_platform(
    f: &mut fmt::Formatter<'_>,
    os: &str,
    architecture: &str,
    variant: &str,
) -> fmt::Result {
    write!(f, "{os}/{architecture}")?;
    if variant.is_empty() { Ok(()) } else { write!(f, "/{variant}") }
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
        let variant = String::new();
        Self { os: "linux".into(), architecture: architecture.into(), variant, level }
    }
}

#[cfg(test)]
mod tests;
