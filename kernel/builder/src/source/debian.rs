//! Debian's `linux-source-*` packages. The archive drops old versions: if the pinned one is missing,
//! the newest of the series is taken, with the hash from the signed index.

use std::path::{Path, PathBuf};
use std::process::Command;

use boxlite_kernel::{Arch, SourceInfo, sha256_file};

use crate::archive::{ARCHIVES, Archive, Offer};
use crate::cache::{self, Cache, check_hash};
use crate::command;
use crate::error::{BuildError, IoContext};
use crate::pins::Debian;
use crate::progress::{Event, Progress};
use crate::source::{Source, store};
use crate::version::{Lts, Version};

/// Fetches the source package of `series` into `dir`.
pub(super) fn fetch(
    cache: &Cache,
    dir: &Path,
    series: Lts,
    progress: Progress<'_>,
) -> Result<Source, BuildError> {
    let pin = series.pins().debian;
    // The same package for every architecture.
    let archive = Archive::open(cache, Arch::HOST, progress)?;
    let offer = choose(&archive.offers(pin.package, progress)?, series, &pin)?;
    if offer.sha256 != pin.deb_sha256 {
        progress(Event::Note(&format!(
            "Debian's archive no longer has {} {}: taking {}, whose hash its signed index names",
            pin.package, pin.version, offer.version
        )));
    }

    let temp = cache::temp_dir(dir)?;
    let deb = archive.download(pin.package, &offer, temp.path(), progress)?;
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
    offers.iter().filter(of_series).max_by(|a, b| a.compare_versions(b)).cloned().ok_or_else(|| {
        BuildError::BadSource {
            path: PathBuf::from(ARCHIVES[0].1),
            problem: format!("offers no {}", pin.package),
        }
    })
}

/// Extracts the kernel's tarball from the package into `dir`.
fn tarball_of(deb: &Path, package: &str, dir: &Path) -> Result<PathBuf, BuildError> {
    let tree = dir.join("package");
    command::output(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&tree))?;
    Ok(tree.join(format!("usr/src/{package}.tar.xz")))
}

#[cfg(test)]
mod tests;
