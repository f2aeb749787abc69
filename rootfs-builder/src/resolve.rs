//! Resolution of a manifest or index to the one image for this machine: through nested indexes to
//! the manifest, its config and its layers. Every document is verified against its digest.

use crate::error::{Error, Remedy, Result};
use crate::format::{
    ConfigBlob, Descriptor, DescriptorPlatform, Digest, Document, ImageConfig, MAX_CONFIG_BYTES,
    MAX_LAYERS, MAX_MANIFEST_BYTES, Platform, is_config_type, is_layer_type,
};
use crate::image::{Documents, Resolved};
use crate::layer::{Layer, Location};

/// Blobs by descriptor: in a layout, an archive, a registry.
pub(crate) trait Content {
    /// Name of the source in messages: `oci:/some/dir`, or the image name of a registry.
    fn label(&self) -> String;
    /// A manifest, index or config of at most `limit` bytes; none if it does not exist.
    fn document(&self, kind: Kind, blob: &Descriptor, limit: u64) -> Result<Option<Vec<u8>>>;
    /// Location and length of a layer; none if it does not exist.
    fn layer(&self, layer: &Descriptor) -> Result<Option<(Location, u64)>>;
}

/// Kind of a document: registries serve manifests and configs from different endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A manifest or an index.
    Manifest,
    /// The config of an image.
    Config,
}

/// Maximum depth of nested indexes.
const MAX_DEPTH: usize = 4;
/// Maximum number of documents read to find the manifest.
const MAX_DOCUMENTS: usize = 64;

/// Resolves a manifest or index; `digest` is that of `json`.
pub(crate) fn document(
    content: &dyn Content,
    digest: Digest,
    json: Vec<u8>,
    host: &Platform,
) -> Result<Resolved> {
    Search { content, host, documents: 1 }.document(digest, json, Way::default())
}

/// Resolves an entry of an index.
pub(crate) fn entry(
    content: &dyn Content,
    entry: &Descriptor,
    host: &Platform,
) -> Result<Resolved> {
    Search { content, host, documents: 0 }.descend(entry, Way::default())
}

/// Resolves the entry, among those for several platforms, that runs on this machine.
pub(crate) fn alternatives(
    content: &dyn Content,
    entries: Vec<Descriptor>,
    host: &Platform,
) -> Result<Resolved> {
    Search { content, host, documents: 0 }.pick_platform(entries, Way::default())
}

/// Search for the manifest that runs on the host.
struct Search<'a> {
    content: &'a dyn Content,
    host: &'a Platform,
    documents: usize,
}

/// How the search got to a document.
#[derive(Clone, Copy, Default)]
struct Way<'a> {
    /// Number of indexes above it.
    depth: usize,
    /// The variant that its entry in an index names, or the entry of an index around it; empty: none.
    variant: &'a str,
}

impl Search<'_> {
    /// Resolves the entry, among those for several platforms, that runs on the host.
    fn pick_platform(&mut self, entries: Vec<Descriptor>, way: Way<'_>) -> Result<Resolved> {
        let mut found = Vec::new();
        let (named, unnamed): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .filter(Descriptor::may_be_image)
            .partition(|entry| entry.platform.as_ref().is_some_and(|p| !p.architecture.is_empty()));
        if let Some(entry) = best(&named, self.host) {
            return self.descend(entry, way);
        }
        found.extend(named.iter().filter_map(|entry| entry.platform.as_ref()).map(shown_platform));
        let mut no_image = None;
        for entry in &unnamed {
            match self.descend(entry, way) {
                Err(Error::WrongPlatform { found: inner, .. }) => found.extend(inner),
                // An artifact that the index does not mark as one.
                Err(error @ Error::Unsupported { .. }) => no_image = Some(error),
                other => return other,
            }
        }
        if let Some(error) = no_image.filter(|_| found.is_empty()) {
            return Err(error);
        }
        found.sort();
        found.dedup();
        Err(Error::WrongPlatform { what: self.content.label(), found, host: self.host.to_string() })
    }

    fn descend(&mut self, entry: &Descriptor, way: Way<'_>) -> Result<Resolved> {
        let place = self.content.label();
        if way.depth > MAX_DEPTH {
            let what = format!("{place}: nested indexes");
            return Err(Error::TooMany { what, count: way.depth, limit: MAX_DEPTH });
        }
        self.documents += 1;
        if self.documents > MAX_DOCUMENTS {
            let what = format!("{place}: manifests to look through");
            return Err(Error::TooMany { what, count: self.documents, limit: MAX_DOCUMENTS });
        }
        let json = read_verified(self.content, Kind::Manifest, entry)?;
        let variant = entry.variant().unwrap_or(way.variant);
        self.document(entry.digest.clone(), json, Way { variant, ..way })
    }

    /// Resolves a document: an image, or an index that leads to one.
    fn document(&mut self, digest: Digest, json: Vec<u8>, way: Way<'_>) -> Result<Resolved> {
        match Document::parse(&json) {
            Ok(Document::Index(entries)) => {
                self.pick_platform(entries, Way { depth: way.depth + 1, ..way })
            }
            Ok(Document::Manifest { config, layers }) => {
                self.image(digest, json, &config, layers, way.variant)
            }
            Err(reason) => {
                let what = format!("the manifest {digest} in {}", self.content.label());
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
        variant: &str,
    ) -> Result<Resolved> {
        let place = self.content.label();
        if !is_config_type(&config.media_type) {
            return Err(Error::Unsupported {
                what: format!("{place}: an artifact of type {:?}", config.media_type),
                remedy: Remedy::Other("it is not a container image; use one that is"),
            });
        }
        let json = read_verified(self.content, Kind::Config, config)?;
        let what = format!("the config {} in {place}", config.digest);
        let ConfigBlob { mut config, diff_ids } =
            ConfigBlob::parse(&json).map_err(|error| Error::corrupt(&what, error))?;
        // The image was chosen by what the index says. Many configs name no variant.
        if !variant.is_empty() {
            variant.clone_into(&mut config.variant);
        }
        check_platform(&place, &config, self.host)?;
        check_layer_count(&what, layers.len(), diff_ids.len())?;
        let layers = layers.into_iter().zip(diff_ids);
        let layers = layers.map(|(layer, diff_id)| self.layer(layer, diff_id));
        let documents = Documents { manifest: Some(manifest.into()), config: Some(json.into()) };
        Ok(Resolved { digest, config, layers: layers.collect::<Result<_>>()?, documents })
    }

    fn layer(&self, layer: Descriptor, diff_id: Digest) -> Result<Layer> {
        let place = self.content.label();
        let what = format!("the layer {} in {place}", layer.digest);
        if !is_layer_type(&layer.media_type) {
            return Err(Error::Unsupported {
                what: format!("{what}: its type {:?}", layer.media_type),
                remedy: Remedy::Other("convert the image with `skopeo copy --format oci`"),
            });
        }
        let path = layer.digest.blob_path();
        let (location, len) = self.content.layer(&layer)?.ok_or_else(|| Error::Missing {
            what: format!("{what} ({path})"),
            remedy: Remedy::Other("the copy is incomplete; make or copy the image again"),
        })?;
        check_len(&what, len, layer.size)?;
        Ok(Layer { digest: Some(layer.digest), size: Some(len), diff_id, location })
    }
}

/// The entry that uses the most of the host's CPU; the first of equals.
fn best<'a>(entries: &'a [Descriptor], host: &Platform) -> Option<&'a Descriptor> {
    let suits = |entry: &Descriptor| {
        let platform = entry.platform.as_ref()?;
        let runs = host.runs(&platform.os, &platform.architecture);
        runs.then(|| host.suits(&platform.variant)).flatten()
    };
    // max_by_key returns the last maximum: reversed, that is the first.
    let suitable = entries.iter().rev().filter_map(|entry| Some((suits(entry)?, entry)));
    suitable.max_by_key(|(level, _)| *level).map(|(_, entry)| entry)
}

fn shown_platform(platform: &DescriptorPlatform) -> String {
    platform_name(&platform.os, &platform.architecture, &platform.variant)
}

fn platform_name(os: &str, architecture: &str, variant: &str) -> String {
    let or_unknown = |text: &str| shortened(if text.is_empty() { "unknown" } else { text });
    let name = format!("{}/{}", or_unknown(os), or_unknown(architecture));
    match variant {
        "" => name,
        variant => format!("{name}/{}", shortened(variant)),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Fails if the image is for another platform than the host's, or of a higher variant than was asked for.
pub(crate) fn check_platform(what: &str, config: &ImageConfig, host: &Platform) -> Result<()> {
    if host.runs(&config.os, &config.architecture) && host.allows(&config.variant) {
        return Ok(());
    }
    let found = vec![platform_name(&config.os, &config.architecture, &config.variant)];
    Err(Error::WrongPlatform { what: what.to_owned(), found, host: host.to_string() })
}

/// Fails unless manifest and config list the same number of layers, at most [`MAX_LAYERS`].
pub(crate) fn check_layer_count(what: &str, layers: usize, diff_ids: usize) -> Result<()> {
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
    let what = format!("{what} {} in {}", blob.digest, content.label());
    if blob.size > limit {
        return Err(Error::TooLarge { what, limit });
    }
    let bytes = content.document(kind, blob, limit)?.ok_or_else(|| Error::Missing {
        what: format!("{what} ({})", blob.digest.blob_path()),
        remedy: Remedy::Other("the copy is incomplete; make or copy the image again"),
    })?;
    check_len(&what, bytes.len() as u64, blob.size)?;
    verify(&what, &bytes, &blob.digest)?;
    Ok(bytes)
}

/// Fails unless `bytes` have the digest `expected`.
pub(crate) fn verify(what: &str, bytes: &[u8], expected: &Digest) -> Result<()> {
    let actual = Digest::of(expected.algorithm(), bytes);
    if actual == *expected {
        return Ok(());
    }
    Err(Error::DigestMismatch { what: what.to_owned(), expected: expected.clone(), actual })
}
