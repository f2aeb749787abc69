//! Kernel sources: the caller's, the cache's, kernel.org's, or Debian's.
//!
//! A download is pinned by hash, except a newer Debian version in place of the pinned one: the
//! archive's signature vouches for its hash, which is recorded.

mod debian;
mod kernel_org;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use boxlite_kernel::{SourceInfo, sha256_file};
use sha2::{Digest, Sha256};

use crate::cache::{self, Cache};
use crate::command;
use crate::error::{BuildError, IoContext};
use crate::progress::{Event, Progress};
use crate::version::{Lts, Version};

/// A kernel source on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) info: SourceInfo,
    pub(crate) location: Location,
}

/// Where a source is, and in which form.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    /// A compressed tarball with one top folder.
    Tarball(PathBuf),
    /// A clean source folder of the caller; only read.
    Tree(PathBuf),
}

impl Source {
    /// Opens the caller's tarball or source folder.
    pub(crate) fn given(path: &Path, series: Lts) -> Result<Self, BuildError> {
        let path = path.canonicalize().context("find", path)?;
        let (makefile, sha256, location) = if path.is_dir() {
            let file = path.join("Makefile");
            let makefile = fs::read_to_string(&file).context("read", &file)?;
            (makefile, fingerprint(&path)?, Location::Tree(path.clone()))
        } else {
            let sha256 = sha256_file(&path).context("read", &path)?;
            (makefile_of(&path)?, sha256, Location::Tarball(path.clone()))
        };
        let version = version_of(&makefile, &path)?;
        if !series.contains(version) {
            return Err(BuildError::WrongSeries {
                path,
                found: version.to_string(),
                wanted: series,
            });
        }
        let pins = series.pins();
        let pinned = [pins.kernel_org.sha256, pins.debian.tarball_sha256].contains(&&*sha256);
        let origin = format!("{}", path.display());
        let info = SourceInfo { version: version.to_string(), origin, sha256, pinned };
        Ok(Self { info, location })
    }

    /// Obtains the source of `series`: from the cache, else from kernel.org, else from Debian.
    pub(crate) fn obtain(
        cache: &Cache,
        series: Lts,
        progress: Progress<'_>,
    ) -> Result<Self, BuildError> {
        let dir = cache.dir("sources")?;
        let _lock = cache.lock(&format!("source-{series}"), || progress(Event::Waiting))?;
        if let Some(source) = cached(&dir, series) {
            return Ok(source);
        }
        let mut attempts = Vec::new();
        match kernel_org::fetch(&dir, series, progress) {
            Ok(source) => return Ok(source),
            Err(error) => attempts.push(format!("  kernel.org: {}", one_line(&error))),
        }
        progress(Event::Note(
            "kernel.org is not reachable: taking the source from Debian's archive",
        ));
        match debian::fetch(cache, &dir, series, progress) {
            Ok(source) => return Ok(source),
            Err(error) => attempts.push(format!("  Debian's archive: {}", one_line(&error))),
        }
        Err(BuildError::NoSource { series, attempts })
    }
}

/// An error and its causes on one line.
fn one_line(error: &BuildError) -> String {
    let mut text = error.to_string().replace('\n', " ");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A source in the cache; a pinned one if there is one.
fn cached(dir: &Path, series: Lts) -> Option<Source> {
    let mut found: Vec<Source> = fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let tarball = entry.path();
            tarball.to_str()?.ends_with(".tar.xz").then_some(())?;
            let text = fs::read(description_of(&tarball)).ok()?;
            let mut info: SourceInfo = serde_json::from_slice(&text).ok()?;
            if !series.contains(info.version.parse().ok()?) {
                return None;
            }
            // The pins may have changed since the download.
            let pins = series.pins();
            info.pinned =
                [pins.kernel_org.sha256, pins.debian.tarball_sha256].contains(&&*info.sha256);
            Some(Source { info, location: Location::Tarball(tarball) })
        })
        .collect();
    found.sort_by_key(|source| (source.info.pinned, source.info.version.parse::<Version>().ok()));
    found.pop()
}

fn description_of(tarball: &Path) -> PathBuf {
    tarball.with_extension("json")
}

/// Moves a verified tarball into the cache. Its description comes last: a tarball without one is
/// ignored.
fn store(dir: &Path, tarball: &Path, info: SourceInfo) -> Result<Source, BuildError> {
    let stored = dir.join(format!("linux-{}.tar.xz", info.version));
    cache::remove(&description_of(&stored))?;
    fs::rename(tarball, &stored).context("rename to", &stored)?;
    cache::write_json(&description_of(&stored), &info)?;
    Ok(Source { info, location: Location::Tarball(stored) })
}

/// Extracts the top makefile of a tarball, without unpacking the rest.
fn makefile_of(tarball: &Path) -> Result<String, BuildError> {
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--to-stdout").arg("--file").arg(tarball);
    tar.args(["--occurrence=1", "--wildcards", "--no-wildcards-match-slash", "*/Makefile"]);
    let text = command::output(&mut tar)?;
    String::from_utf8(text).map_err(|_| BuildError::BadSource {
        path: tarball.to_owned(),
        problem: "its Makefile is not text".to_owned(),
    })
}

/// The version in a kernel's top makefile.
pub(crate) fn version_of(makefile: &str, path: &Path) -> Result<Version, BuildError> {
    let number = |name: &str| {
        makefile.lines().take(20).find_map(|line| {
            line.strip_prefix(name)?.trim_start().strip_prefix('=')?.trim().parse().ok()
        })
    };
    match (number("VERSION"), number("PATCHLEVEL"), number("SUBLEVEL")) {
        (Some(major), Some(minor), Some(patch)) => Ok(Version(major, minor, patch)),
        _ => Err(BuildError::BadSource {
            path: path.to_owned(),
            problem: "not a kernel source: its Makefile names no version".to_owned(),
        }),
    }
}

/// A hash of a folder's file names, sizes and modification times.
fn fingerprint(dir: &Path) -> Result<String, BuildError> {
    let mut hasher = Sha256::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = fs::read_dir(&dir).context("read", &dir)?;
        let mut entries: Vec<_> = entries.collect::<Result<_, _>>().context("read", &dir)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let meta = entry.metadata().context("read", &path)?;
            if meta.is_dir() {
                if entry.file_name() != ".git" {
                    open.push(path);
                }
                continue;
            }
            let modified = meta.modified().context("read", &path)?;
            hasher.update(format!("{path:?} {} {modified:?}\n", meta.len()));
        }
    }
    Ok(format!("{:x}", hasher.finalize()))
}

#[cfg(test)]
mod tests;
