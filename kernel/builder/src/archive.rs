//! Debian's archive through apt, with package lists and state of our own: no root and no entry in the
//! machine's sources is needed, and apt checks the archive's signature.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use boxlite_kernel::Arch;

use crate::cache::{self, Cache, Lock};
use crate::command;
use crate::error::{BuildError, IoContext};
use crate::progress::{Event, Progress};
use crate::version::Version;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The archives: name, default URL, suites.
pub(crate) const ARCHIVES: [(&str, &str, &str); 2] = [
    (
        "debian",
        "http://deb.debian.org/debian",
        "bookworm bookworm-backports trixie trixie-backports",
    ),
    (
        "debian-security",
        "http://deb.debian.org/debian-security",
        "bookworm-security trixie-security",
    ),
];

/// A version of a package in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Version, as Debian writes it.
    pub version: String,
    /// Size of the package in bytes.
    pub size: u64,
    /// SHA-256 of the package, from the signed index.
    pub sha256: String,
}

impl Offer {
    /// Compares Debian versions by dpkg's rules; by the upstream numbers if dpkg does not decide.
    pub fn compare_versions(&self, other: &Self) -> Ordering {
        let newer = |a: &str, b: &str| {
            Command::new("dpkg")
                .args(["--compare-versions", a, "gt", b])
                .status()
                .is_ok_and(|status| status.success())
        };
        let (a, b) = (self.version.as_str(), other.version.as_str());
        match (newer(a, b), newer(b, a)) {
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ => a.parse::<Version>().ok().cmp(&b.parse::<Version>().ok()),
        }
    }
}

/// Debian's archive, as an architecture sees it. One process at a time uses it.
#[derive(Debug)]
pub struct Archive {
    config: PathBuf,
    /// apt does not wait for another one that uses the same folders.
    _lock: Lock,
}

impl Archive {
    /// Opens the archive and reads its package lists.
    ///
    /// # Errors
    /// There is no keyring to check signatures with, or apt fails.
    pub fn open(
        cache: &Cache,
        arch: Arch,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self, BuildError> {
        if !Path::new(KEYRING).exists() {
            return Err(BuildError::BadSource {
                path: PathBuf::from(KEYRING),
                problem: "missing; install with: apt-get install debian-archive-keyring".to_owned(),
            });
        }
        let name = match arch {
            Arch::HOST => "apt".to_owned(),
            other => format!("apt-{}", debian_name(other)),
        };
        let lock = cache.lock(&name, || progress(Event::Waiting))?;
        let dir = cache.dir(&name)?;
        for folder in ["state/lists/partial", "cache/archives/partial", "parts"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).context("make", &folder)?;
        }
        cache::write(&dir.join("status"), b"")?;
        cache::write(&dir.join("debian.sources"), sources(&machine_mirrors()).as_bytes())?;
        let config = dir.join("apt.conf");
        cache::write(&config, configuration(&dir, arch).as_bytes())?;
        Ok(Self { config, _lock: lock })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").arg("--config-file").arg(&self.config);
        command
    }

    /// The versions of `package` in the archive.
    ///
    /// # Errors
    /// The archive has none, or neither it nor an older list of its packages can be read.
    pub fn offers(
        &self,
        package: &str,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Offer>, BuildError> {
        progress(Event::Note("reading Debian's package lists"));
        // A suite or mirror may be gone: the others may do.
        let update = command::output(self.command("apt-get").args(["--quiet=2", "update"]));
        let shown = command::output(self.command("apt-cache").args(["show", package]));
        match (shown, update) {
            (Ok(text), _) => Ok(parse_offers(&String::from_utf8_lossy(&text))),
            (Err(_), Err(error)) | (Err(error), Ok(_)) => Err(error),
        }
    }

    /// Downloads a version of `package` into `dir`, which has no other package, and returns its path.
    ///
    /// # Errors
    /// The download fails, or does not have the hash in the index.
    pub fn download(
        &self,
        package: &str,
        offer: &Offer,
        dir: &Path,
        progress: Progress<'_>,
    ) -> Result<PathBuf, BuildError> {
        let what = format!("{package} {}", offer.version);
        let mut get = self.command("apt-get");
        get.current_dir(dir)
            .args(["--quiet=2", "download"])
            .arg(format!("{package}={}", offer.version));
        command::watch(&mut get, dir, |bytes| {
            progress(Event::Downloading { what: &what, bytes, total: Some(offer.size) });
        })?;
        let entries = fs::read_dir(dir).context("read", dir)?;
        let deb = entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| BuildError::BadSource {
                path: dir.to_owned(),
                problem: format!("apt-get download left no package of {what}"),
            })?;
        cache::check_hash(&deb, &offer.sha256)?;
        Ok(deb)
    }
}

/// Debian's name of an architecture, which is OCI's, too.
pub const fn debian_name(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "amd64",
        Arch::Aarch64 => "arm64",
    }
}

/// apt's configuration. The machine's own applies (a proxy, for instance), except for paths,
/// architectures and update hooks.
fn configuration(dir: &Path, arch: Arch) -> String {
    let (dir, arch) = (dir.display(), debian_name(arch));
    format!(
        r#"Dir::State "{dir}/state";
Dir::State::status "{dir}/status";
Dir::Cache "{dir}/cache";
Dir::Etc::sourcelist "{dir}/debian.sources";
Dir::Etc::sourceparts "{dir}/parts";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "{dir}/parts";
#clear APT::Architectures;
APT::Architecture "{arch}";
APT::Architectures "{arch}";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled "false";
APT::Sandbox::User "root";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#
    )
}

/// The Debian mirrors that the machine uses.
fn machine_mirrors() -> Vec<String> {
    let text = command::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Identifier: Packages",
    ]))
    .unwrap_or_default();
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}

/// The source list: each archive at the machine's mirror, else at its default URL.
fn sources(mirrors: &[String]) -> String {
    ARCHIVES
        .iter()
        .map(|(archive, default, suites)| {
            let own = mirrors.iter().find(|uri| {
                let last = uri.trim_end_matches('/').rsplit('/').next();
                uri.starts_with("http") && last == Some(archive)
            });
            format!(
                "Types: deb\nURIs: {}\nSuites: {suites}\nComponents: main\n\
                 Signed-By: {KEYRING}\n\n",
                own.map_or(*default, String::as_str)
            )
        })
        .collect()
}

/// Parses the output of `apt-cache show`.
fn parse_offers(text: &str) -> Vec<Offer> {
    text.split("\n\n")
        .filter_map(|paragraph| {
            let field = |name: &str| {
                paragraph
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
            };
            Some(Offer {
                version: field("Version")?.to_owned(),
                size: field("Size")?.parse().ok()?,
                sha256: field("SHA256")?.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
