//! Images on this machine: OCI layouts, archives of `docker save`, directories.

mod archive;
mod directory;
mod expansion;
mod files;
mod layout;
mod tar_index;

pub(crate) use archive::Archive;
pub(crate) use expansion::Scratch;
pub(crate) use files::Files;

use crate::error::Result;
use crate::format::{ImageName, ImageReference, Platform};
use crate::image::Resolved;
use crate::progress::Progress;

/// Result of [`look_up`].
pub(crate) enum Lookup<'a> {
    /// An image on this machine, resolved.
    Here(Box<Resolved>),
    /// A name, for the store and registries.
    Name(&'a ImageName),
}

/// Resolves a reference, unless it is a name.
pub(crate) fn look_up<'a>(
    reference: &'a ImageReference,
    host: &Platform,
    scratch: &Scratch,
    progress: &dyn Progress,
) -> Result<Lookup<'a>> {
    let resolved = match reference {
        ImageReference::OciLayout { dir, tag } => {
            layout::resolve(&layout::LayoutDir { dir }, tag.as_deref(), host)?
        }
        ImageReference::DockerArchive { file, tag } => {
            Archive::open(file, scratch, progress)?.resolve(tag.as_deref(), host)?
        }
        ImageReference::Directory { dir } => directory::resolve(dir, host, progress)?,
        ImageReference::Name(name) => return Ok(Lookup::Name(name)),
    };
    Ok(Lookup::Here(Box::new(resolved)))
}
