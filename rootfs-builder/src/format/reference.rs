//! Image references: a transport and a path in skopeo's form, or a name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// Reference to an image.
///
/// In `oci:` and `docker-archive:` the path ends at the first colon before which a directory (a
/// file) exists, and the tag follows. Without such a colon, the whole text is the path if that
/// exists; else the first colon ends the path, as in skopeo. `rootfs:` has no tag. Paths are made
/// absolute when parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageReference {
    /// `oci:DIR[:tag]`: an OCI image layout.
    OciLayout {
        /// The directory.
        dir: PathBuf,
        /// Tag of the image in it.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:tag]`: an archive of `docker save`, compressed or not. The tag is
    /// `name:tag`, or only the part after the colon.
    DockerArchive {
        /// The file.
        file: PathBuf,
        /// Tag of the image in it.
        tag: Option<String>,
    },
    /// `rootfs:DIR`: the files of a directory on this machine.
    Directory {
        /// The directory.
        dir: PathBuf,
    },
    /// `alpine`, `docker://quay.io/foo/bar:1.2`: a name in the store or in a registry.
    Name(ImageName),
}

/// Supported transports.
const TRANSPORTS: &[&str] = &["docker", "docker-archive", "oci", "rootfs"];

/// Transports of other tools: refused, rather than taken for names.
const FOREIGN_TRANSPORTS: &[&str] = &[
    "containers-storage",
    "dir",
    "docker-daemon",
    "file",
    "http",
    "https",
    "oci-archive",
    "ostree",
    "sif",
    "tarball",
];

/// Reason why a text is no image reference.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InvalidReference(pub(crate) String);

impl ImageReference {
    /// Parses a reference; `FromStr` does the same with this crate's error.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidReference> {
        let invalid = InvalidReference;
        let path = |path: &str| {
            if path.is_empty() {
                return Err(invalid("the path is missing".into()));
            }
            if path.contains('\0') {
                return Err(invalid("the path has a NUL character in it".into()));
            }
            std::path::absolute(path).map_err(|error| invalid(error.to_string()))
        };
        let path_and_tag =
            |rest: &str, is_there: fn(&Path) -> bool| match split_path(rest, is_there) {
                (file, None) => Ok((path(file)?, None)),
                (_, Some("")) => Err(invalid("the tag behind the colon is missing".into())),
                (file, Some(tag)) => Ok((path(file)?, Some(tag.to_owned()))),
            };
        match text.split_once(':') {
            Some(("oci", rest)) => {
                let parts = path_and_tag(rest, Path::is_dir);
                parts.map(|(dir, tag)| Self::OciLayout { dir, tag })
            }
            Some(("docker-archive", rest)) => {
                let parts = path_and_tag(rest, |path| path.exists() && !path.is_dir());
                parts.map(|(file, tag)| Self::DockerArchive { file, tag })
            }
            Some(("rootfs", rest)) => Ok(Self::Directory { dir: path(rest)? }),
            Some((transport, _)) if FOREIGN_TRANSPORTS.contains(&transport) => {
                Err(invalid(format!("images cannot be read from {transport}:")))
            }
            _ => {
                let name = text.strip_prefix("docker://").unwrap_or(text);
                name.parse().map(Self::Name).map_err(|reason: InvalidName| invalid(reason.0))
            }
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |f: &mut fmt::Formatter<'_>, transport, path: &Path, tag: &Option<String>| {
            write!(f, "{transport}:{}", path.display())?;
            tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
        };
        match self {
            Self::OciLayout { dir, tag } => place(f, "oci", dir, tag),
            Self::DockerArchive { file, tag } => place(f, "docker-archive", file, tag),
            Self::Directory { dir } => place(f, "rootfs", dir, &None),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// Splits path and tag at the first colon before which `is_there` holds for the path.
fn split_path(text: &str, is_there: impl Fn(&Path) -> bool) -> (&str, Option<&str>) {
    const MAX_COLONS: usize = 16;
    let at = |colon: usize| (&text[..colon], Some(&text[colon + 1..]));
    let colons = text.match_indices(':').map(|(colon, _)| colon).take(MAX_COLONS);
    let Some(first) = text.find(':') else { return (text, None) };
    match colons.clone().find(|colon| is_there(Path::new(&text[..*colon]))) {
        Some(colon) => at(colon),
        None if is_there(Path::new(text)) => (text, None),
        None => at(first),
    }
}

/// An image name as in Docker, `[host[:port]/]path[:tag][@digest]`, in its shortest spelling:
/// without `docker.io/` and `library/`, with `:latest` if it has neither tag nor digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ImageName(String);

impl ImageName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The registry, `host[:port]`; `docker.io` if the name has none.
    pub fn registry(&self) -> &str {
        split_host(self.path_and_tag().0).0.unwrap_or(DOCKER_HUB)
    }

    /// The repository in its registry: `library/alpine`, `grafana/grafana`.
    pub fn repository(&self) -> String {
        match split_host(self.path_and_tag().0) {
            (None, name) if !name.contains('/') => format!("library/{name}"),
            (_, name) => name.to_owned(),
        }
    }

    /// The name in its longest spelling: `docker.io/library/alpine:latest`.
    pub fn full(&self) -> String {
        let rest = self.path_and_tag().0.len();
        let rest = self.0.get(rest..).unwrap_or_default();
        format!("{}/{}{rest}", self.registry(), self.repository())
    }

    /// The tag, if the name has one.
    pub fn tag(&self) -> Option<&str> {
        self.path_and_tag().1
    }

    /// The digest that pins the name, if there is one.
    pub fn digest(&self) -> Option<Digest> {
        self.0.split_once('@').and_then(|(_, digest)| digest.parse().ok())
    }

    fn path_and_tag(&self) -> (&str, Option<&str>) {
        split_tag(self.0.split_once('@').map_or(self.as_str(), |(name, _)| name))
    }
}

/// The registry of names without a host.
pub(crate) const DOCKER_HUB: &str = "docker.io";

/// Splits off the host, if the first part of the path is one.
fn split_host(path: &str) -> (Option<&str>, &str) {
    match path.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (Some(first), rest)
        }
        _ => (None, path),
    }
}

/// Splits off the tag. A colon before the last slash belongs to the host's port.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    let colon = name.rfind(':').filter(|colon| !name[*colon..].contains('/'));
    match colon {
        Some(colon) => (&name[..colon], Some(&name[colon + 1..])),
        None => (name, None),
    }
}

/// Reason why a text is no image name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(String);

impl FromStr for ImageName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = |reason: &str| Err(InvalidName(reason.to_owned()));
        if text.is_empty() {
            return invalid("the name is empty");
        }
        if text.len() > 512 {
            return invalid("the name is longer than 512 bytes");
        }
        if text.starts_with(['/', '.', '~']) {
            return invalid("this is a path; put oci:, docker-archive: or rootfs: in front of it");
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => match digest.parse::<Digest>() {
                Ok(digest) => (name, Some(digest)),
                Err(error) => return Err(InvalidName(error.to_string())),
            },
            None => (text, None),
        };
        let (path, tag) = split_tag(name);
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return invalid(
                "a tag has at most 128 letters, digits, '_', '.' and '-', and begins with none of the last two",
            );
        }

        let (host, rest) = split_host(path);
        if host.is_some_and(|host| !is_host(host)) {
            return invalid("the registry's host name is malformed");
        }
        if !rest.split('/').all(is_path_component) {
            return invalid(
                "the parts of a name have lower-case letters and digits, separated by '.', '_', '__' or '-'",
            );
        }
        let path = match host {
            // A first part that looks like a host would be parsed as one: keep the host then.
            None | Some(DOCKER_HUB | "index.docker.io") if split_host(rest).0.is_none() => {
                rest.strip_prefix("library/").filter(|rest| !rest.contains('/')).unwrap_or(rest)
            }
            _ => path,
        };

        if TRANSPORTS.contains(&path) || FOREIGN_TRANSPORTS.contains(&path) {
            return Err(InvalidName(format!(
                "{path:?} in front of a colon is a transport, not a name"
            )));
        }

        let mut shortest = path.to_owned();
        match (tag, &digest) {
            (Some(tag), _) => shortest += &format!(":{tag}"),
            (None, None) => shortest += ":latest",
            (None, Some(_)) => {}
        }
        if let Some(digest) = digest {
            shortest += &format!("@{digest}");
        }
        Ok(Self(shortest))
    }
}

/// Whether `tag` selects the image called `name`: the same name in any spelling, or only the part
/// after its colon.
pub(crate) fn names_match(name: &str, tag: &str) -> bool {
    let short = |text: &str| text.parse::<ImageName>().ok();
    let tag_of_name = name.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'));
    name == tag
        || tag_of_name == Some(tag)
        || short(tag).is_some_and(|tag| short(name) == Some(tag))
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= 128
        && tag.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

pub(crate) fn is_host(host: &str) -> bool {
    if let Some((address, port)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let is_port = |port: &str| port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
        return address.parse::<std::net::Ipv6Addr>().is_ok() && (port.is_empty() || is_port(port));
    }
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    port.parse::<u16>().is_ok() && name.split('.').all(is_label)
}

pub(crate) fn is_path_component(part: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_well = |byte: Option<&u8>| byte.is_some_and(|byte| is_word(*byte));
    let mut separators = part
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|s| !s.is_empty());
    ends_well(bytes.first())
        && ends_well(bytes.last())
        && separators.all(|separator| {
            matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

impl TryFrom<String> for ImageName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

#[cfg(test)]
mod tests;
