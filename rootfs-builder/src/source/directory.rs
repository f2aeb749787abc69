//! `rootfs:DIR`: a directory of this machine as an image of one layer. The digest of its tar stream
//! is its identity.

use std::path::Path;

use crate::error::{Error, Result};
use crate::format::{Algorithm, Hasher, ImageConfig, Platform};
use crate::image::{Documents, Resolved};
use crate::layer::{DirectoryTar, Layer, Location};
use crate::progress::{Event, Pace, Progress};

/// Resolves a directory, which is read as a whole.
pub(super) fn resolve(dir: &Path, host: &Platform, progress: &dyn Progress) -> Result<Resolved> {
    let mut stream = DirectoryTar::open(dir)?;
    let mut pace = Pace::default();
    let mut done = 0;
    let digest = Hasher::digest_of(Algorithm::Sha256, &mut stream, |count| {
        done += count;
        if pace.is_due(done) {
            progress.report(Event::Scanning { dir, done });
        }
    });
    let digest = digest.map_err(|error| Error::from_io(error, || dir.display().to_string()))?;
    progress.report(Event::Scanning { dir, done });
    let config = ImageConfig {
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
        cmd: vec!["/bin/sh".into()],
        os: host.os.clone(),
        architecture: host.architecture.clone(),
        ..ImageConfig::default()
    };
    let location = Location::Directory(dir.to_owned());
    let layer = Layer { digest: None, size: Some(done), diff_id: digest.clone(), location };
    Ok(Resolved { digest, config, layers: vec![layer], documents: Documents::default() })
}
