//! For which machines an image is.

use std::fmt;

/// An operating system and an architecture, in Go's words as OCI has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
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
        Self { os: "linux".into(), architecture: architecture.into() }
    }

    /// Whether an image that says this of itself runs here. Empty: it does not say.
    pub(crate) fn runs(&self, os: &str, architecture: &str) -> bool {
        (os.is_empty() || os == self.os)
            && (architecture.is_empty()
                || architecture == self.architecture
                || architecture == self.uname_name())
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
