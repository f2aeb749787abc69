//! OCI image layouts, in a directory or an archive: selects the entry of `index.json` by tag.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::files::Files;
use crate::error::{Error, Remedy, Result};
use crate::file::read_small;
use crate::format::{Descriptor, Document, MAX_MANIFEST_BYTES, Platform, names_match};
use crate::image::Resolved;
use crate::layer::Location;
use crate::resolve;
use crate::sys;

/// A layout in a directory.
pub(crate) struct LayoutDir<'a> {
    pub(crate) dir: &'a Path,
}

impl LayoutDir<'_> {
    /// `path` is a constant or comes from a parsed digest, never from the image's text.
    fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }
}

impl Files for LayoutDir<'_> {
    fn label(&self) -> String {
        format!("oci:{}", self.dir.display())
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        absent_is_none(read_small(&self.path(path), limit))
    }

    fn locate(&self, path: &str) -> Result<Option<(Location, u64)>> {
        let path = self.path(path);
        let open = || {
            let file = sys::open_regular(&path).map_err(Error::io("open", &path))?;
            Ok(file.metadata().map_err(Error::io("read", &path))?.len())
        };
        Ok(absent_is_none(open())?.map(|len| (Location::File(path.clone()), len)))
    }
}

fn absent_is_none<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Resolves the image in an OCI layout that `tag` and the host's platform select.
pub(super) fn resolve(files: &dyn Files, tag: Option<&str>, host: &Platform) -> Result<Resolved> {
    let entries = index(files)?;
    match pick_entry(files.label(), entries, tag)? {
        Pick::One(entry) => resolve::entry(&files, &entry, host),
        Pick::ByPlatform(entries) => resolve::alternatives(&files, entries, host),
    }
}

/// The tags in a layout, and the number of images without one.
pub(super) fn tags(files: &dyn Files) -> Result<(Vec<String>, usize)> {
    let images: Vec<_> = index(files)?.into_iter().filter(Descriptor::may_be_image).collect();
    let tags: Vec<String> = images.iter().filter_map(shown_tag).collect();
    let nameless = images.len() - tags.len();
    Ok((tags, nameless))
}

/// The entries of the layout's `index.json`.
fn index(files: &dyn Files) -> Result<Vec<Descriptor>> {
    check_version(files)?;
    let json = files.read("index.json", MAX_MANIFEST_BYTES)?.ok_or_else(|| Error::Missing {
        what: format!("index.json in {}", files.label()),
        remedy: Remedy::Other("the layout is incomplete; make or copy it again"),
    })?;
    let what = format!("index.json in {}", files.label());
    match Document::parse(&json) {
        Ok(Document::Index(entries)) => Ok(entries),
        Ok(Document::Manifest { .. }) => {
            Err(Error::corrupt(what, "it is a manifest, not an index"))
        }
        Err(reason) => Err(Error::corrupt(what, reason)),
    }
}

fn check_version(files: &dyn Files) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct LayoutFile {
        image_layout_version: String,
    }
    let json = files.read("oci-layout", MAX_MANIFEST_BYTES)?.ok_or_else(|| Error::Missing {
        what: format!("the file oci-layout in {}", files.label()),
        remedy: Remedy::Other(
            "this is no OCI image layout; `skopeo copy docker://IMAGE oci:DIR` makes one",
        ),
    })?;
    let what = format!("oci-layout in {}", files.label());
    let layout: LayoutFile =
        serde_json::from_slice(&json).map_err(|error| Error::corrupt(&what, error))?;
    if layout.image_layout_version.starts_with("1.") {
        Ok(())
    } else {
        let version: String = layout.image_layout_version.chars().take(40).collect();
        Err(Error::Unsupported {
            what: format!("version {version:?} of the layout {}", files.label()),
            remedy: Remedy::Other("convert it to version 1.0.0"),
        })
    }
}

enum Pick {
    One(Descriptor),
    ByPlatform(Vec<Descriptor>),
}

/// The entry of the index with this tag; several, if they differ only by platform.
fn pick_entry(place: String, entries: Vec<Descriptor>, tag: Option<&str>) -> Result<Pick> {
    let images: Vec<_> = entries.into_iter().filter(Descriptor::may_be_image).collect();
    let mut tags: Vec<String> = images.iter().filter_map(shown_tag).collect();
    tags.sort();
    tags.dedup();

    let chosen: Vec<_> = match tag {
        None => images,
        Some(tag) => images.into_iter().filter(|entry| is_tagged(entry, tag)).collect(),
    };
    let Some(first) = chosen.first() else {
        return Err(match tag {
            Some(tag) => Error::NoSuchTag { place, tag: tag.to_owned(), tags },
            None => Error::Missing {
                what: format!("an image in {place}"),
                remedy: Remedy::Other("its index.json lists none; make or copy the layout again"),
            },
        });
    };
    if chosen.iter().all(|entry| entry.digest == first.digest) {
        return Ok(Pick::One(first.clone()));
    }
    let same_tag = chosen.iter().all(|entry| shown_tag(entry) == shown_tag(first));
    if same_tag && chosen.iter().all(|entry| entry.platform.is_some()) {
        return Ok(Pick::ByPlatform(chosen));
    }
    // If tags do not tell them apart, list digests.
    let tags = match same_tag {
        true => chosen.iter().map(|entry| entry.digest.to_string()).collect(),
        false => tags,
    };
    Err(Error::AmbiguousTag { place, tags })
}

fn shown_tag(entry: &Descriptor) -> Option<String> {
    entry.full_name().or_else(|| entry.tag()).map(str::to_owned)
}

fn is_tagged(entry: &Descriptor, tag: &str) -> bool {
    entry.tag() == Some(tag)
        || entry.full_name().is_some_and(|name| names_match(name, tag))
        || entry.digest.to_string() == tag
}

#[cfg(test)]
mod tests;
