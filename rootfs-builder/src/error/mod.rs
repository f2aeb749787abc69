//! Errors on the way from an image to its disk. Each message names the thing and, if known, the
//! remedy.

mod registry;
mod remedy;
mod text;

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::format::{Digest, ImagePlatform, ImageReference, InvalidReference};
pub use registry::RegistryProblem;
pub use remedy::Remedy;
use text::{ByteCount, list};

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

const CORRECT_FILE: &str = "correct or remove it";
const INSTALL_HELPER: &str = "install it, or take it out of docker's config.json";
const MAKE_ANEW: &str = "make or copy the image again";
const TRY_AGAIN: &str = "try again when nothing writes to it";

/// Why an image could not be found, read, verified, built or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no image reference.
    #[error("{text:?} is not an image: {reason}; {}", Remedy::WriteReference)]
    InvalidReference {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The name is not in the store, and pulling was not allowed.
    #[error(
        "image {name} is not in the store, and pulling it is not allowed; {}",
        Remedy::PullOrImport
    )]
    NotStored {
        /// The name.
        name: String,
    },
    /// A registry does not serve the image, or refuses a login.
    #[error("cannot get {what} from {registry}: {problem}")]
    Registry {
        /// What was requested.
        what: String,
        /// The registry or mirror.
        registry: String,
        /// The reason.
        problem: Box<RegistryProblem>,
    },
    /// A file of the registry configuration or of logins is unusable.
    #[error("{} cannot be used: {reason}; {CORRECT_FILE}", file.display())]
    RegistryConfig {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A credential helper failed.
    #[error("the credential helper {program} failed: {reason}; {INSTALL_HELPER}")]
    CredentialHelper {
        /// The program.
        program: String,
        /// Its message.
        reason: String,
    },
    /// Cancelled through [`Progress`](crate::Progress::is_cancelled).
    #[error("cancelled")]
    Cancelled,
    /// A file operation failed.
    #[error("cannot {action} {}: {source}{}", path.display(), end_of(source))]
    Io {
        /// The attempted operation, e.g. "read".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The store's file system is full.
    #[error(
        "the disk is full: {} has {} left and {} more would not fit; {}",
        folder.display(), ByteCount(*available), ByteCount(*wanted), Remedy::FreeSpace
    )]
    DiskFull {
        /// The folder without space.
        folder: PathBuf,
        /// Bytes to be written at that moment (at least).
        wanted: u64,
        /// Bytes free.
        available: u64,
    },
    /// Something that the image needs is missing.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// The file or entry.
        what: String,
        /// What to do.
        remedy: Remedy,
    },
    /// A file has invalid content.
    #[error("{what} is damaged: {reason}; {MAKE_ANEW}")]
    Corrupt {
        /// The file, entry or blob.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Content does not match its digest.
    #[error("{what} has the wrong digest: expected {expected}, got {actual}; {MAKE_ANEW}")]
    DigestMismatch {
        /// The blob or layer.
        what: String,
        /// The expected digest.
        expected: Digest,
        /// The digest of the content.
        actual: Digest,
    },
    /// Something exceeds its limit of bytes.
    #[error("{what} is larger than the limit of {}", ByteCount(*limit))]
    TooLarge {
        /// The file, blob or layer.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A count exceeds its limit.
    #[error("{what}: {count} is above the limit of {limit}")]
    TooMany {
        /// What was counted, and where.
        what: String,
        /// The count.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// No image has the tag.
    #[error("{place} has no image tagged {tag:?}; it has: {}", list(tags))]
    NoSuchTag {
        /// The layout or archive.
        place: String,
        /// The tag asked for.
        tag: String,
        /// The tags it has.
        tags: Vec<String>,
    },
    /// There are several images, and no tag selects one.
    #[error(
        "{place} holds several images; say which by appending one of these tags: {}",
        list(tags)
    )]
    AmbiguousTag {
        /// The layout or archive.
        place: String,
        /// The tags it has.
        tags: Vec<String>,
    },
    /// The image is for another platform.
    #[error(
        "{what} is for {}, this machine needs {host}; {}",
        list(found),
        Remedy::GetForPlatform { platform: host.clone() }
    )]
    WrongPlatform {
        /// The image.
        what: String,
        /// The image's platforms, `os/architecture`.
        found: Vec<String>,
        /// This machine's platform.
        host: String,
    },
    /// Boxes here cannot run the platform that was asked for.
    #[error("boxes here run {host}, not {platform}; {}", Remedy::of_platform(platform, host))]
    UnsupportedPlatform {
        /// The platform that was asked for.
        platform: ImagePlatform,
        /// The platform of boxes.
        host: String,
    },
    /// The image uses an unsupported feature.
    #[error("{what} is not supported: {remedy}")]
    Unsupported {
        /// The feature.
        what: String,
        /// What to do.
        remedy: Remedy,
    },
    /// A directory changed while it was read.
    #[error("{} changed while it was being read; {TRY_AGAIN}", path.display())]
    Changed {
        /// The file or directory.
        path: PathBuf,
    },
    /// The builder failed.
    #[error("cannot build the disk of {image}: {source}")]
    Build {
        /// The image.
        image: String,
        /// The builder's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The builder finished before it had read, and so verified, all layers.
    #[error("the disk of {image} was built from {read} of {layers} layers; it has been discarded")]
    Unread {
        /// The image.
        image: String,
        /// Number of layers read to their verified end.
        read: usize,
        /// Number of layers.
        layers: usize,
    },
    /// A box uses the disk.
    #[error("{name} is in use by a box; {}", Remedy::RemoveBox)]
    InUse {
        /// The image.
        name: String,
    },
    /// The store has no image of that name or digest.
    #[error("no image {text:?} in the store; {}", Remedy::ListImages)]
    NotFound {
        /// The name or digest.
        text: String,
    },
    /// Several images in the store match.
    #[error("{text:?} matches several images; use one of these names: {}", list(names))]
    Ambiguous {
        /// The name or digest.
        text: String,
        /// The names of the matches.
        names: Vec<String>,
    },
}

impl Error {
    /// What to do about it, if that is known: the message ends with it.
    pub fn remedy(&self) -> Option<Remedy> {
        Some(match self {
            Self::InvalidReference { .. } => Remedy::WriteReference,
            Self::NotStored { .. } => Remedy::PullOrImport,
            Self::Registry { problem, .. } => return problem.remedy(),
            Self::RegistryConfig { .. } => Remedy::Other(CORRECT_FILE),
            Self::CredentialHelper { .. } => Remedy::Other(INSTALL_HELPER),
            Self::Io { source, .. } => Remedy::Other(of_io(source)?),
            Self::DiskFull { .. } => Remedy::FreeSpace,
            Self::Missing { remedy, .. } | Self::Unsupported { remedy, .. } => remedy.clone(),
            Self::Corrupt { .. } | Self::DigestMismatch { .. } => Remedy::Other(MAKE_ANEW),
            Self::WrongPlatform { host, .. } => Remedy::GetForPlatform { platform: host.clone() },
            Self::UnsupportedPlatform { platform, host } => Remedy::of_platform(platform, host),
            Self::Changed { .. } => Remedy::Other(TRY_AGAIN),
            Self::InUse { .. } => Remedy::RemoveBox,
            Self::NotFound { .. } => Remedy::ListImages,
            // The message lists the choices.
            Self::NoSuchTag { .. } | Self::AmbiguousTag { .. } | Self::Ambiguous { .. } => {
                return None;
            }
            Self::Cancelled
            | Self::TooLarge { .. }
            | Self::TooMany { .. }
            | Self::Build { .. }
            | Self::Unread { .. } => return None,
        })
    }

    /// The message, with the caller's words in place of the remedy's if `words` returns any.
    pub fn to_string_with(&self, words: impl FnOnce(&Remedy) -> Option<String>) -> String {
        let message = self.to_string();
        let Some(remedy) = self.remedy() else { return message };
        match (words(&remedy), message.strip_suffix(&remedy.to_string())) {
            (Some(words), Some(problem)) => format!("{problem}{words}"),
            _ => message,
        }
    }

    /// Maps an I/O error to one that names the path: `.map_err(Error::io("read", path))`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { action, path: path.to_owned(), source }
    }

    /// Like [`Error::io`], for writes of `wanted` bytes: tells a full disk apart.
    pub(crate) fn write(path: &Path, wanted: u64) -> impl FnOnce(io::Error) -> Error {
        move |source| {
            if is_disk_full(&source) {
                let folder = path.parent().unwrap_or(path).to_owned();
                let available = crate::sys::free_bytes(&folder).unwrap_or(0);
                Error::DiskFull { folder, wanted, available }
            } else {
                Error::Io { action: "write", path: path.to_owned(), source }
            }
        }
    }

    pub(crate) fn registry(
        what: impl Into<String>,
        registry: &str,
        problem: RegistryProblem,
    ) -> Error {
        Error::Registry {
            what: what.into(),
            registry: registry.to_owned(),
            problem: Box::new(problem),
        }
    }

    pub(crate) fn corrupt(what: impl Into<String>, reason: impl ToString) -> Error {
        Error::Corrupt { what: what.into(), reason: reason.to_string() }
    }

    /// Wraps this error as the error of a `Read`.
    pub(crate) fn into_io(self) -> io::Error {
        let kind = match &self {
            Error::Io { source, .. } => source.kind(),
            Error::DiskFull { .. } => io::ErrorKind::StorageFull,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, self)
    }

    /// Unwraps what [`Error::into_io`] wrapped; any other I/O error is one of reading `what`.
    pub(crate) fn from_io(error: io::Error, what: impl FnOnce() -> String) -> Error {
        match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::corrupt(what(), error),
        }
    }
}

/// In this module, because the formats do not know this error.
impl FromStr for ImageReference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text).map_err(|InvalidReference(reason)| Error::InvalidReference {
            text: text.to_owned(),
            reason,
        })
    }
}

/// Whether this I/O error means that the disk is full.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an I/O error in this chain means that the disk is full.
pub(crate) fn chain_is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(is_disk_full) {
            return true;
        }
        next = error.source();
    }
    false
}

/// The remedy of an I/O error, if one is known.
fn of_io(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::NotFound => Some("check the path"),
        io::ErrorKind::PermissionDenied => Some("get the permission, or be the owner"),
        io::ErrorKind::ReadOnlyFilesystem => Some("use a folder that can be written to"),
        _ => None,
    }
}

/// The same, as the end of a message.
fn end_of(error: &io::Error) -> String {
    of_io(error).map_or_else(String::new, |remedy| format!("; {remedy}"))
}

#[cfg(test)]
mod tests;
