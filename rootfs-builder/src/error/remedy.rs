//! What to do about an error, as data.

use std::fmt;
use std::time::Duration;

use crate::format::ImagePlatform;

/// The way out of an error. The words of its `Display` fit every caller; one that has commands or
/// methods for it says those instead ([`Error::to_string_with`](crate::Error::to_string_with)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Write an image reference that this crate reads.
    WriteReference,
    /// Pull the image, or import one under its name.
    PullOrImport,
    /// Import the image under a name.
    Import,
    /// Save the archive with the image's name, or import it under a name.
    NameOnImport,
    /// Save the archive with the image's name, or load it from a file with that name.
    NameArchive,
    /// Ask for the names of the images in the store.
    ListImages,
    /// Remove the box that uses the image, or the image by force.
    RemoveBox,
    /// Free space on the disk, or remove images.
    FreeSpace,
    /// Get the image for this platform.
    GetForPlatform {
        /// `os/architecture`.
        platform: String,
    },
    /// Run boxes where they have this architecture.
    RunBoxesOf {
        /// The architecture.
        architecture: String,
    },
    /// Log in to the registry.
    LogIn {
        /// The registry.
        registry: String,
    },
    /// Check the image's name, or log in to the registry.
    CheckNameOrLogIn {
        /// The registry.
        registry: String,
    },
    /// Log in to the registry again, or log out.
    LogInAgain {
        /// The registry.
        registry: String,
    },
    /// Wait, or log in for a higher rate limit.
    WaitOrLogIn {
        /// How long the registry asks to wait.
        after: Option<Duration>,
    },
    /// Configure the registry's certificate authority, or that it has no TLS.
    ConfigureTls,
    /// Reach the host by TLS, or configure that its logins may go without.
    AllowPlain {
        /// The host.
        host: String,
    },
    /// Something outside of this crate and its callers, in words.
    Other(&'static str),
}

impl Remedy {
    /// What to do about a platform that boxes of the platform `host` cannot run.
    pub(super) fn of_platform(platform: &ImagePlatform, host: &str) -> Self {
        match (platform.os(), platform.architecture()) {
            ("linux", ours) if host.split('/').nth(1) == Some(ours) => {
                Self::Other("leave out the variant, or name one that the CPU has")
            }
            ("linux", "amd64" | "arm64") => {
                Self::RunBoxesOf { architecture: platform.architecture().to_owned() }
            }
            _ => Self::Other("there are boxes of linux/amd64 and linux/arm64 only"),
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WriteReference => {
                "write oci:DIR[:tag], docker-archive:FILE[:tag], rootfs:DIR, or a name as in \
                 alpine:3.20, ghcr.io/owner/image"
            }
            Self::PullOrImport => "pull it, or import one under this name",
            Self::Import => "import it under a name first",
            Self::NameOnImport => "save it with its name, or import it under one",
            Self::NameArchive => "save it with its name, or load it from a file with that name",
            Self::ListImages => "the list of images shows the names",
            Self::RemoveBox => "remove the box first, or the image by force",
            Self::FreeSpace => "free space there, or remove images that you do not need",
            Self::ConfigureTls => {
                "for a private certificate authority, name its file as \"ca_file\" of the registry \
                 in registries.json; for a registry without TLS, say \"insecure\": true there"
            }
            Self::Other(words) => words,
            Self::GetForPlatform { platform } => {
                let architecture = platform.split('/').nth(1).unwrap_or(platform);
                return write!(
                    f,
                    "get the image for {platform} (skopeo: `--override-arch {architecture}`)"
                );
            }
            Self::RunBoxesOf { architecture } => {
                return write!(f, "run boxes where their machine is {architecture}");
            }
            Self::LogIn { registry } => return write!(f, "log in to {registry}"),
            Self::CheckNameOrLogIn { registry } => {
                return write!(f, "check the name, or log in to {registry} first");
            }
            Self::LogInAgain { registry } => {
                return write!(f, "log in to {registry} again, or log out");
            }
            Self::WaitOrLogIn { after: Some(after) } => {
                let seconds = after.as_secs();
                return write!(f, "try again in {seconds} seconds, or log in for a higher limit");
            }
            Self::WaitOrLogIn { after: None } => "try again later, or log in for a higher limit",
            Self::AllowPlain { host } => {
                return write!(
                    f,
                    "use https, or say \"insecure\": true for {host} in registries.json"
                );
            }
        })
    }
}
