//! Kernel versions, and the long-term series of guest kernels.

use std::fmt;
use std::str::FromStr;

/// A kernel version, e.g. 6.12.117; what follows the numbers is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u16, pub u16, pub u16);

/// The text is no kernel version.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a kernel version such as 6.12 or 6.12.64")]
pub struct BadVersion(String);

impl FromStr for Version {
    type Err = BadVersion;

    fn from_str(text: &str) -> Result<Self, BadVersion> {
        let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or("");
        let mut parts = numbers.split('.').map(str::parse);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), None, None) => Ok(Self(major, minor, 0)),
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => {
                Ok(Self(major, minor, patch))
            }
            _ => Err(BadVersion(text.to_owned())),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A long-term series with configuration fragments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Lts {
    /// 6.12, the default.
    #[default]
    V6_12,
    /// 6.1.
    V6_1,
}

impl Lts {
    /// The name: the first two numbers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V6_12 => "6.12",
            Self::V6_1 => "6.1",
        }
    }

    /// Whether `version` belongs to this series.
    pub fn contains(self, version: Version) -> bool {
        match self {
            Self::V6_12 => (version.0, version.1) == (6, 12),
            Self::V6_1 => (version.0, version.1) == (6, 1),
        }
    }
}

impl fmt::Display for Lts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A series without fragments.
#[derive(Debug, thiserror::Error)]
#[error("no guest kernel of series {0:?}: use 6.12 or 6.1")]
pub struct UnknownLts(String);

impl FromStr for Lts {
    type Err = UnknownLts;

    fn from_str(name: &str) -> Result<Self, UnknownLts> {
        [Self::V6_12, Self::V6_1]
            .into_iter()
            .find(|lts| lts.name() == name)
            .ok_or_else(|| UnknownLts(name.to_owned()))
    }
}

#[cfg(test)]
mod tests;
