//! OCI image layouts: from `index.json` over nested indexes to the one manifest that fits, its
//! config and its layers. Everything below the index is verified by its digest.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Content, Files, Kind};
use crate::config::ConfigBlob;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::{Documents, Layer, Location, Parts, read_small};
use crate::manifest::{
    Descriptor, DescriptorPlatform, Document, MAX_CONFIG_BYTES, MAX_LAYERS, MAX_MANIFEST_BYTES,
    is_config_type, is_layer_type,
};
use crate::platform::Platform;
use crate::sys;

/// A layout that is a directory.
pub(crate) struct LayoutDir<'a> {
    pub(crate) dir: &'a Path,
}

impl LayoutDir<'_> {
    /// Paths come from this crate or from a parsed digest, never from the image's own words.
    fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }
}

impl Files for LayoutDir<'_> {
    fn place(&self) -> String {
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

/// Nested indexes may go this deep.
const MAX_DEPTH: usize = 4;
/// No more documents than this are read to find the one manifest.
const MAX_DOCUMENTS: usize = 64;

/// See [`super::resolve_layout`].
pub(super) fn resolve(files: &dyn Files, tag: Option<&str>, host: &Platform) -> Result<Parts> {
    let entries = index(files)?;
    let mut search = Search { content: &files, host, documents: 0 };
    match search.pick_entry(entries, tag)? {
        Pick::One(entry) => search.descend(&entry, 0),
        Pick::ByPlatform(entries) => search.pick_platform(entries, 0),
    }
}

/// The tags of the images in a layout, and how many have none.
pub(super) fn tags(files: &dyn Files) -> Result<(Vec<String>, usize)> {
    let images: Vec<_> = index(files)?.into_iter().filter(Descriptor::may_be_image).collect();
    let tags: Vec<String> = images.iter().filter_map(shown_tag).collect();
    let nameless = images.len() - tags.len();
    Ok((tags, nameless))
}

/// The entries of a layout's top index.
fn index(files: &dyn Files) -> Result<Vec<Descriptor>> {
    check_version(files)?;
    let json = files.read("index.json", MAX_MANIFEST_BYTES)?.ok_or_else(|| Error::Missing {
        what: format!("index.json in {}", files.place()),
        remedy: "the layout is incomplete; make or copy it anew".into(),
    })?;
    let what = format!("index.json in {}", files.place());
    match Document::parse(&json) {
        Ok(Document::Index(entries)) => Ok(entries),
        Ok(Document::Manifest { .. }) => {
            Err(Error::corrupt(what, "it is a manifest, not an index"))
        }
        Err(reason) => Err(Error::corrupt(what, reason)),
    }
}

/// See [`super::resolve_document`].
pub(super) fn resolve_document(
    content: &dyn Content,
    digest: Digest,
    json: Vec<u8>,
    host: &Platform,
) -> Result<Parts> {
    Search { content, host, documents: 1 }.document(digest, json, 0)
}

fn check_version(files: &dyn Files) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct LayoutFile {
        image_layout_version: String,
    }
    let json = files.read("oci-layout", MAX_MANIFEST_BYTES)?.ok_or_else(|| Error::Missing {
        what: format!("the file oci-layout in {}", files.place()),
        remedy: "this is no OCI image layout; `skopeo copy docker://IMAGE oci:DIR` makes one"
            .into(),
    })?;
    let what = format!("oci-layout in {}", files.place());
    let layout: LayoutFile =
        serde_json::from_slice(&json).map_err(|error| Error::corrupt(&what, error))?;
    if layout.image_layout_version.starts_with("1.") {
        Ok(())
    } else {
        let version: String = layout.image_layout_version.chars().take(40).collect();
        Err(Error::Unsupported {
            what: format!("version {version:?} of the layout {}", files.place()),
            remedy: "convert it to version 1.0.0".into(),
        })
    }
}

enum Pick {
    One(Descriptor),
    ByPlatform(Vec<Descriptor>),
}

/// Looks for the manifest that fits.
struct Search<'a> {
    content: &'a dyn Content,
    host: &'a Platform,
    documents: usize,
}

impl Search<'_> {
    /// The entry of the top index that the tag names; where several are left, and only platforms
    /// tell them apart, all of those.
    fn pick_entry(&self, entries: Vec<Descriptor>, tag: Option<&str>) -> Result<Pick> {
        let images: Vec<_> = entries.into_iter().filter(Descriptor::may_be_image).collect();
        let mut tags: Vec<String> = images.iter().filter_map(shown_tag).collect();
        tags.sort();
        tags.dedup();

        let chosen: Vec<_> = match tag {
            None => images,
            Some(tag) => images.into_iter().filter(|entry| is_tagged(entry, tag)).collect(),
        };
        let place = self.content.place();
        let Some(first) = chosen.first() else {
            return Err(match tag {
                Some(tag) => Error::NoSuchTag { place, tag: tag.to_owned(), tags },
                None => Error::Missing {
                    what: format!("an image in {place}"),
                    remedy: "its index.json lists none; make or copy the layout anew".into(),
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
        // Where tags do not tell them apart, digests do.
        let tags = match same_tag {
            true => chosen.iter().map(|entry| entry.digest.to_string()).collect(),
            false => tags,
        };
        Err(Error::AmbiguousTag { place, tags })
    }

    /// The image among alternatives for several platforms that runs here.
    fn pick_platform(&mut self, entries: Vec<Descriptor>, depth: usize) -> Result<Parts> {
        let mut found = Vec::new();
        let (named, unnamed): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .filter(Descriptor::may_be_image)
            .partition(|entry| entry.platform.as_ref().is_some_and(|p| !p.architecture.is_empty()));
        if let Some(entry) = best(&named, self.host) {
            return self.descend(entry, depth);
        }
        found.extend(named.iter().filter_map(|entry| entry.platform.as_ref()).map(shown_platform));
        let mut no_image = None;
        for entry in &unnamed {
            match self.descend(entry, depth) {
                Err(Error::WrongPlatform { found: inner, .. }) => found.extend(inner),
                // An artifact that the index does not say is one.
                Err(error @ Error::Unsupported { .. }) => no_image = Some(error),
                other => return other,
            }
        }
        if let Some(error) = no_image.filter(|_| found.is_empty()) {
            return Err(error);
        }
        found.sort();
        found.dedup();
        Err(Error::WrongPlatform { what: self.content.place(), found, host: self.host.to_string() })
    }

    fn descend(&mut self, entry: &Descriptor, depth: usize) -> Result<Parts> {
        let place = self.content.place();
        if depth > MAX_DEPTH {
            let what = format!("{place}: nested indexes");
            return Err(Error::TooMany { what, count: depth, limit: MAX_DEPTH });
        }
        self.documents += 1;
        if self.documents > MAX_DOCUMENTS {
            let what = format!("{place}: manifests to look through");
            return Err(Error::TooMany { what, count: self.documents, limit: MAX_DOCUMENTS });
        }
        let json = read_verified(self.content, Kind::Manifest, entry)?;
        self.document(entry.digest.clone(), json, depth)
    }

    /// The image that a document is, or leads to.
    fn document(&mut self, digest: Digest, json: Vec<u8>, depth: usize) -> Result<Parts> {
        match Document::parse(&json) {
            Ok(Document::Index(entries)) => self.pick_platform(entries, depth + 1),
            Ok(Document::Manifest { config, layers }) => self.image(digest, json, &config, layers),
            Err(reason) => {
                let what = format!("the manifest {digest} in {}", self.content.place());
                Err(Error::corrupt(what, reason))
            }
        }
    }

    fn image(
        &self,
        digest: Digest,
        manifest: Vec<u8>,
        config: &Descriptor,
        layers: Vec<Descriptor>,
    ) -> Result<Parts> {
        let place = self.content.place();
        if !is_config_type(&config.media_type) {
            return Err(Error::Unsupported {
                what: format!("{place}: an artifact of type {:?}", config.media_type),
                remedy: "it is not a container image; use one that is".into(),
            });
        }
        let json = read_verified(self.content, Kind::Config, config)?;
        let what = format!("the config {} in {place}", config.digest);
        let ConfigBlob { config, diff_ids } =
            ConfigBlob::parse(&json).map_err(|error| Error::corrupt(&what, error))?;
        check_platform(&place, &config.os, &config.architecture, self.host)?;
        check_layer_count(&what, layers.len(), diff_ids.len())?;
        let layers = layers.into_iter().zip(diff_ids);
        let layers = layers.map(|(layer, diff_id)| self.layer(layer, diff_id));
        let documents = Documents { manifest: Some(manifest.into()), config: Some(json.into()) };
        Ok(Parts { digest, config, layers: layers.collect::<Result<_>>()?, documents })
    }

    fn layer(&self, layer: Descriptor, diff_id: Digest) -> Result<Layer> {
        let place = self.content.place();
        let what = format!("the layer {} in {place}", layer.digest);
        if !is_layer_type(&layer.media_type) {
            return Err(Error::Unsupported {
                what: format!("{what}: its type {:?}", layer.media_type),
                remedy: "convert the image with `skopeo copy --format oci`".into(),
            });
        }
        let path = layer.digest.blob_path();
        let (location, len) = self.content.layer(&layer)?.ok_or_else(|| Error::Missing {
            what: format!("{what} ({path})"),
            remedy: "the copy is incomplete; make or copy the image anew".into(),
        })?;
        check_len(&what, len, layer.size)?;
        Ok(Layer { digest: Some(layer.digest), size: Some(len), diff_id, location })
    }
}

fn shown_tag(entry: &Descriptor) -> Option<String> {
    entry.full_name().or_else(|| entry.tag()).map(str::to_owned)
}

fn is_tagged(entry: &Descriptor, tag: &str) -> bool {
    entry.tag() == Some(tag)
        || entry.full_name().is_some_and(|name| super::archive::names_match(name, tag))
        || entry.digest.to_string() == tag
}

/// The entry for this machine that makes the most of its CPU; of several as good, the first.
fn best<'a>(entries: &'a [Descriptor], host: &Platform) -> Option<&'a Descriptor> {
    let suits = |entry: &Descriptor| {
        let platform = entry.platform.as_ref()?;
        let runs = host.runs(&platform.os, &platform.architecture);
        runs.then(|| host.suits(&platform.variant)).flatten()
    };
    // The last of the greatest is taken.
    let suitable = entries.iter().rev().filter_map(|entry| Some((suits(entry)?, entry)));
    suitable.max_by_key(|(level, _)| *level).map(|(_, entry)| entry)
}

fn shown_platform(platform: &DescriptorPlatform) -> String {
    let name = platform_name(&platform.os, &platform.architecture);
    match &*platform.variant {
        "" => name,
        variant => format!("{name}/{}", shortened(variant)),
    }
}

fn platform_name(os: &str, architecture: &str) -> String {
    let or_unknown = |text: &str| shortened(if text.is_empty() { "unknown" } else { text });
    format!("{}/{}", or_unknown(os), or_unknown(architecture))
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// An error that names both, where the image is for other machines.
pub(super) fn check_platform(
    what: &str,
    os: &str,
    architecture: &str,
    host: &Platform,
) -> Result<()> {
    if host.runs(os, architecture) {
        return Ok(());
    }
    let found = vec![platform_name(os, architecture)];
    Err(Error::WrongPlatform { what: what.to_owned(), found, host: host.to_string() })
}

/// The layers of the manifest and of the config must be as many, and not too many.
pub(super) fn check_layer_count(what: &str, layers: usize, diff_ids: usize) -> Result<()> {
    if layers > MAX_LAYERS {
        let what = format!("{what}: layers");
        return Err(Error::TooMany { what, count: layers, limit: MAX_LAYERS });
    }
    if layers == diff_ids {
        return Ok(());
    }
    Err(Error::corrupt(what, format!("it lists {diff_ids} layers, the manifest lists {layers}")))
}

fn check_len(what: &str, len: u64, expected: u64) -> Result<()> {
    if len == expected {
        return Ok(());
    }
    let hint = if len < expected { " (the copy was cut short)" } else { "" };
    Err(Error::corrupt(what, format!("it has {len} bytes instead of {expected}{hint}")))
}

fn read_verified(content: &dyn Content, kind: Kind, blob: &Descriptor) -> Result<Vec<u8>> {
    let (what, limit) = match kind {
        Kind::Manifest => ("the manifest", MAX_MANIFEST_BYTES),
        Kind::Config => ("the config", MAX_CONFIG_BYTES),
    };
    let what = format!("{what} {} in {}", blob.digest, content.place());
    if blob.size > limit {
        return Err(Error::TooLarge { what, limit });
    }
    let bytes = content.document(kind, blob, limit)?.ok_or_else(|| Error::Missing {
        what: format!("{what} ({})", blob.digest.blob_path()),
        remedy: "the copy is incomplete; make or copy the image anew".into(),
    })?;
    check_len(&what, bytes.len() as u64, blob.size)?;
    verify(&what, &bytes, &blob.digest)?;
    Ok(bytes)
}

/// An error where `bytes` are not what `expected` is the digest of.
pub(super) fn verify(what: &str, bytes: &[u8], expected: &Digest) -> Result<()> {
    let actual = Digest::of(expected.algorithm(), bytes);
    if actual == *expected {
        return Ok(());
    }
    Err(Error::DigestMismatch { what: what.to_owned(), expected: expected.clone(), actual })
}
