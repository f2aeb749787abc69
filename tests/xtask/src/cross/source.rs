//! The source of Rust's standard library, from Debian's package `rust-src`: of exactly the compiler's
//! release, and with the lock file that pins its dependencies.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use boxlite_kernel::Arch;
use boxlite_kernel_builder::{Archive, Cache, Event, Offer};

use crate::build::output;
use crate::ui::Step;

const PACKAGE: &str = "rust-src";
/// SHA-256 of the package that is preferred: version 1.95.0+dfsg1-2~bpo13+1. The archive drops old
/// versions: another revision of the same release has its hash in the signed index.
pub(super) const PINNED: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";

/// Unpacks the source of `release` into `dir`; returns the folder `library` and the package's version.
pub(super) fn unpack(
    cache: &Cache,
    release: &str,
    dir: &Path,
    step: &Step,
) -> Result<(PathBuf, String)> {
    let mut progress = |event: Event<'_>| match event {
        Event::Waiting => step.say("waiting for another process that reads Debian's archive"),
        Event::Downloading { what, bytes, total } => step.bytes(what, bytes, total),
        _ => {}
    };
    let archive = Archive::open(cache, Arch::HOST, &mut progress)?;
    let offer = choose(&archive.offers(PACKAGE, &mut progress)?, release)?;
    let deb = archive.download(PACKAGE, &offer, dir, &mut progress)?;
    step.say("unpacking its source");
    let tree = dir.join("source");
    output(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&tree))?;
    let library = tree.join(format!("usr/src/rustc-{release}/library"));
    if !library.join("Cargo.lock").is_file() {
        bail!("{PACKAGE} {} has no library/Cargo.lock", offer.version);
    }
    Ok((library, offer.version))
}

/// The pinned version if it is of this release, else the newest that is.
fn choose(offers: &[Offer], release: &str) -> Result<Offer> {
    let of_release = |offer: &&Offer| offer.version.split(['+', '-', '~']).next() == Some(release);
    let all: Vec<&Offer> = offers.iter().filter(of_release).collect();
    let pinned = all.iter().find(|offer| offer.sha256 == PINNED);
    pinned
        .or_else(|| all.iter().max_by(|a, b| a.compare_versions(b)))
        .map(|offer| (*offer).clone())
        .with_context(|| format!("Debian's archive offers no {PACKAGE} of release {release}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_compilers_release_does_and_the_pinned_revision_best() {
        let offer = |version: &str, sha256: &str| Offer {
            version: version.to_owned(),
            size: 1,
            sha256: sha256.to_owned(),
        };
        let mut offers = vec![
            offer("1.96.1+dfsg1-2~bpo13+1", "a"),
            offer("1.95.0+dfsg1-3~bpo13+1", "b"),
            offer("1.95.0+dfsg1-9~bpo13+1", "c"),
        ];
        assert_eq!(choose(&offers, "1.95.0").unwrap().sha256, "c");
        offers.insert(0, offer("1.95.0+dfsg1-2~bpo13+1", PINNED));
        assert_eq!(choose(&offers, "1.95.0").unwrap().sha256, PINNED);
        assert_eq!(choose(&offers, "1.96.1").unwrap().sha256, "a");
        assert!(choose(&offers, "1.95").is_err());
        assert!(choose(&offers, "1.9").is_err());
    }
}
