//! Indexes and manifests of OCI and Docker: only the fields in use, parsed leniently.
//!
//! Not the oci-spec crate's types: those refuse `null` lists and odd values in fields that are not
//! used here.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::config::or_default;
use super::digest::Digest;

/// Maximum length of an index or manifest, in bytes.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Maximum length of a config blob, in bytes.
pub(crate) const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Maximum number of layers of an image (overlay file systems allow far fewer).
pub(crate) const MAX_LAYERS: usize = 512;

/// Reference to a blob: digest, length and media type.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Type of an artifact that is no image.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) artifact_type: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) platform: Option<DescriptorPlatform>,
}

/// Platform of an image in an index.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct DescriptorPlatform {
    #[serde(deserialize_with = "or_default")]
    pub(crate) os: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) architecture: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) variant: String,
}

impl Descriptor {
    /// The tag of this entry in a layout's index.
    pub(crate) fn tag(&self) -> Option<&str> {
        self.annotations.get("org.opencontainers.image.ref.name").map(String::as_str)
    }

    /// The full name (`docker.io/library/x:tag`) that containerd and Docker add.
    pub(crate) fn full_name(&self) -> Option<&str> {
        self.annotations.get("io.containerd.image.name").map(String::as_str)
    }

    /// The variant of its platform.
    pub(crate) fn variant(&self) -> Option<&str> {
        let variant = &*self.platform.as_ref()?.variant;
        (!variant.is_empty()).then_some(variant)
    }

    /// Whether this may be an image or an index of images: not an attestation, signature or other
    /// artifact.
    pub(crate) fn may_be_image(&self) -> bool {
        let is_attestation = self.annotations.contains_key("vnd.docker.reference.type")
            || self.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
        let kind = media_type_essence(&self.media_type);
        let is_image_type =
            kind.is_empty() || INDEX_TYPES.contains(&kind) || MANIFEST_TYPES.contains(&kind);
        is_image_type && !is_attestation && is_config_type(&self.artifact_type)
    }
}

const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// A media type without its parameters.
pub(crate) fn media_type_essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// Whether this is the config of a container image, not of a chart, a policy, …
pub(crate) fn is_config_type(media_type: &str) -> bool {
    matches!(
        media_type_essence(media_type),
        "" | "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            | "application/octet-stream"
    )
}

/// Whether this is a tar layer, compressed or not. The compression is detected from the content.
pub(crate) fn is_layer_type(media_type: &str) -> bool {
    let kind = media_type_essence(media_type);
    let kind = kind.strip_suffix("+gzip").or_else(|| kind.strip_suffix("+zstd")).unwrap_or(kind);
    matches!(
        kind,
        "" | "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
            | "application/vnd.docker.container.image.rootfs.diff+x-gtar"
    )
}

/// An index of images, or the manifest of one.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

impl Document {
    /// Parses either; they are told apart by their members, not by the media type. A document that
    /// could be read as both is refused.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw {
            #[serde(default)]
            schema_version: Option<u64>,
            manifests: Option<Vec<Descriptor>>,
            config: Option<Descriptor>,
            layers: Option<Vec<Descriptor>>,
        }
        let raw: Raw = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if raw.schema_version.is_some_and(|version| version != 2) {
            return Err("its schema version is not 2 (convert the image with `skopeo copy`)".into());
        }
        match raw {
            Raw { manifests: Some(manifests), config: None, layers: None, .. } => {
                Ok(Self::Index(manifests))
            }
            Raw { manifests: None, config: Some(config), layers, .. } => {
                Ok(Self::Manifest { config, layers: layers.unwrap_or_default() })
            }
            Raw { manifests: Some(_), .. } => {
                Err("it claims to be both an index and a manifest".into())
            }
            _ => Err("it is neither an image index nor an image manifest".into()),
        }
    }
}

#[cfg(test)]
mod tests;
