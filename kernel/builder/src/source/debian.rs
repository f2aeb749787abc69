//! Debian's `linux-source-*` packages, through apt with package lists and state of our own: no root
//! and no entry in the machine's sources is needed, and apt checks the archive's signature.
//!
//! The archive drops old versions. If the pinned one is missing, the newest of the series is taken,
//! with the hash from the signed index.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use boxlite_kernel::{SourceInfo, sha256_file};

use crate::cache::{self, Cache};
use crate::command;
use crate::error::{BuildError, IoContext};
use crate::pins::Debian;
use crate::progress::{Event, Progress};
use crate::source::{Source, check_hash, store};
use crate::version::{Lts, Version};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The archives: name, default URL, suites.
const ARCHIVES: [(&str, &str, &str); 2] = [
    ("debian", "http://deb.debian.org/debian", "bookworm bookworm-backports trixie"),
    (
        "debian-security",
        "http://deb.debian.org/debian-security",
        "bookworm-security trixie-security",
    ),
];

/// A version of the source package in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Offer {
    version: String,
    size: u64,
    sha256: String,
}

/// Fetches the source package of `series` into `dir`.
pub(super) fn fetch(
    cache: &Cache,
    dir: &Path,
    series: Lts,
    progress: Progress<'_>,
) -> Result<Source, BuildError> {
    let pin = series.pins().debian;
    let apt = Apt::set_up(&cache.dir("apt")?)?;
    let offer = choose(&apt.offers(&pin, progress)?, series, &pin)?;
    if offer.sha256 != pin.deb_sha256 {
        progress(Event::Note(&format!(
            "Debian's archive no longer has {} {}: taking {}, whose hash its signed index names",
            pin.package, pin.version, offer.version
        )));
    }

    let temp = cache::temp_dir(dir)?;
    let deb = apt.download(&pin, &offer, temp.path(), progress)?;
    check_hash(&deb, &offer.sha256)?;
    progress(Event::Unpacking(&deb));
    let tarball = tarball_of(&deb, pin.package, temp.path())?;
    if offer.sha256 == pin.deb_sha256 {
        check_hash(&tarball, pin.tarball_sha256)?;
    }
    let sha256 = sha256_file(&tarball).context("read", &tarball)?;
    let info = SourceInfo {
        origin: format!("Debian {} {}", pin.package, offer.version),
        pinned: sha256 == pin.tarball_sha256,
        version: offer.version,
        sha256,
    };
    store(dir, &tarball, info)
}

/// The pinned version if available, else the newest of the series.
fn choose(offers: &[Offer], series: Lts, pin: &Debian) -> Result<Offer, BuildError> {
    if let Some(offer) = offers.iter().find(|offer| offer.sha256 == pin.deb_sha256) {
        return Ok(offer.clone());
    }
    let of_series = |offer: &&Offer| {
        offer.version.parse::<Version>().is_ok_and(|version| series.contains(version))
    };
    offers
        .iter()
        .filter(of_series)
        .max_by(|a, b| compare_versions(&a.version, &b.version))
        .cloned()
        .ok_or_else(|| BuildError::BadSource {
            path: PathBuf::from(ARCHIVES[0].1),
            problem: format!("offers no {}", pin.package),
        })
}

/// Compares Debian versions by dpkg's rules; by the kernel's numbers if dpkg does not decide.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let newer = |a: &str, b: &str| {
        Command::new("dpkg")
            .args(["--compare-versions", a, "gt", b])
            .status()
            .is_ok_and(|status| status.success())
    };
    match (newer(a, b), newer(b, a)) {
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        _ => a.parse::<Version>().ok().cmp(&b.parse::<Version>().ok()),
    }
}

/// apt with a configuration, package lists and state of its own.
struct Apt {
    config: PathBuf,
}

impl Apt {
    fn set_up(dir: &Path) -> Result<Self, BuildError> {
        if !Path::new(KEYRING).exists() {
            return Err(BuildError::BadSource {
                path: PathBuf::from(KEYRING),
                problem: "missing; install with: apt-get install debian-archive-keyring".to_owned(),
            });
        }
        for folder in ["state/lists/partial", "cache/archives/partial", "parts"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).context("make", &folder)?;
        }
        cache::write(&dir.join("status"), b"")?;
        cache::write(&dir.join("debian.sources"), sources(&machine_mirrors()).as_bytes())?;
        let config = dir.join("apt.conf");
        cache::write(&config, configuration(dir).as_bytes())?;
        Ok(Self { config })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").arg("--config-file").arg(&self.config);
        command
    }

    /// The versions of the pinned package in the archive.
    fn offers(&self, pin: &Debian, progress: Progress<'_>) -> Result<Vec<Offer>, BuildError> {
        progress(Event::Note("reading Debian's package lists"));
        // A suite or mirror may be gone: the others may do.
        let update = command::output(self.command("apt-get").args(["--quiet=2", "update"]));
        let shown = command::output(self.command("apt-cache").args(["show", pin.package]));
        match (shown, update) {
            (Ok(text), _) => Ok(parse_offers(&String::from_utf8_lossy(&text))),
            (Err(_), Err(error)) | (Err(error), Ok(_)) => Err(error),
        }
    }

    fn download(
        &self,
        pin: &Debian,
        offer: &Offer,
        dir: &Path,
        progress: Progress<'_>,
    ) -> Result<PathBuf, BuildError> {
        let what = format!("{} {}", pin.package, offer.version);
        let mut get = self.command("apt-get");
        get.current_dir(dir)
            .args(["--quiet=2", "download"])
            .arg(format!("{}={}", pin.package, offer.version));
        command::watch(&mut get, dir, |bytes| {
            progress(Event::Downloading { what: &what, bytes, total: Some(offer.size) });
        })?;
        let entries = fs::read_dir(dir).context("read", dir)?;
        entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| BuildError::BadSource {
                path: dir.to_owned(),
                problem: format!("apt-get download left no package of {what}"),
            })
    }
}

/// Extracts the kernel's tarball from the package into `dir`.
fn tarball_of(deb: &Path, package: &str, dir: &Path) -> Result<PathBuf, BuildError> {
    let tree = dir.join("package");
    command::output(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&tree))?;
    Ok(tree.join(format!("usr/src/{package}.tar.xz")))
}

/// apt's configuration. The machine's own applies (a proxy, for instance), except for paths and
/// update hooks.
fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"Dir::State "{dir}/state";
Dir::State::status "{dir}/status";
Dir::Cache "{dir}/cache";
Dir::Etc::sourcelist "{dir}/debian.sources";
Dir::Etc::sourceparts "{dir}/parts";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "{dir}/parts";
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
