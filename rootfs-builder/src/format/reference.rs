//! How people name images: a transport and a place as skopeo writes them, or a plain name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// Where an image is.
///
/// In `oci:` and `docker-archive:` the first colon ends the path and begins the tag, as in skopeo; unless
/// there is nothing at that path: then it is the first colon behind a path where there is a folder (a file), or
/// none if that is the whole. `rootfs:` has no tag. Paths become absolute when they are parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageReference {
    /// `oci:DIR[:tag]`: a directory in the OCI image layout.
    OciLayout {
        /// The directory.
        dir: PathBuf,
        /// Which of its images.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:tag]`: what `docker save` writes, compressed or not. The tag is
    /// `name:tag` or only what stands behind its colon.
    DockerArchive {
        /// The file.
        file: PathBuf,
        /// Which of its images.
        tag: Option<String>,
    },
    /// `rootfs:DIR`: the files of a directory on this machine.
    Directory {
        /// The directory.
        dir: PathBuf,
    },
    /// `alpine`, `docker://quay.io/foo/bar:1.2`: a name that an import gave, or one in a registry.
    Name(ImageName),
}

/// Transports that are known here.
const TRANSPORTS: &[&str] = &["docker", "docker-archive", "oci", "rootfs"];

/// Transports of other tools: said to be unknown rather than taken for names.
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

/// Why a text is not an image reference.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InvalidReference(pub(crate) String);

impl ImageReference {
    /// Parses a reference; [`FromStr`] does the same with this crate's error.
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

/// Splits a path from the tag behind it, at the first colon behind which a path ends that `is_there`.
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

/// A name in the form people know from Docker, `[host[:port]/]path[:tag][@digest]`, in its shortest
/// spelling: without `docker.io/` and `library/`, with `:latest` where it says neither tag nor digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ImageName(String);

impl ImageName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The registry's `host[:port]`: `docker.io` where the name says none.
    pub fn registry(&self) -> &str {
        split_host(self.path_and_tag().0).0.unwrap_or(DOCKER_HUB)
    }

    /// The name of the repository in its registry: `library/alpine`, `grafana/grafana`.
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

    /// The digest that the name is pinned to, if it is.
    pub fn digest(&self) -> Option<Digest> {
        self.0.split_once('@').and_then(|(_, digest)| digest.parse().ok())
    }

    fn path_and_tag(&self) -> (&str, Option<&str>) {
        split_tag(self.0.split_once('@').map_or(self.as_str(), |(name, _)| name))
    }
}

/// The registry of names without a host.
pub(crate) const DOCKER_HUB: &str = "docker.io";

/// Splits the host off, where the first part of a path is one.
fn split_host(path: &str) -> (Option<&str>, &str) {
    match path.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (Some(first), rest)
        }
        _ => (None, path),
    }
}

/// Splits the tag off. A colon before the last slash belongs to the port of the host.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    let colon = name.rfind(':').filter(|colon| !name[*colon..].contains('/'));
    match colon {
        Some(colon) => (&name[..colon], Some(&name[colon + 1..])),
        None => (name, None),
    }
}

/// Why a text is not an image name.
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
            // Without the host, what follows it must not look like one.
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

/// Whether an image called `name` is meant by `tag`: the same name in any spelling, or only what
/// stands behind its colon.
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
