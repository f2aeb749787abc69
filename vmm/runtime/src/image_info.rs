//! Descriptions of the images of a home.

use std::path::PathBuf;
use std::time::SystemTime;

use boxlite_rootfs_builder::ImageConfig;
use serde::{Deserialize, Serialize};

use crate::state::millis;

/// An image in the home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageInfo {
    /// The name; for an image that was used without being imported, its reference.
    pub name: String,
    /// The digest of the manifest.
    pub digest: String,
    /// The digest of the index that lists the manifest, if there is one. Registries show this digest.
    pub index: Option<String>,
    /// The OCI chain ID of the layers.
    pub chain_id: String,
    /// The configuration of commands.
    pub config: ImageConfig,
    /// The source that the image was imported or pulled from; none: the image is used in place.
    pub origin: Option<String>,
    /// Time when the image was stored.
    #[serde(with = "millis")]
    pub time: SystemTime,
    /// Size of its disk and layers on the host's disk, in bytes.
    pub size: u64,
    /// The base disk, if it has been built.
    pub disk: Option<PathBuf>,
    /// Damage of the base disk, if any. The disk is rebuilt when it is next used.
    pub problem: Option<String>,
}

/// An image in the home, in full detail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageDetails {
    /// The entry in the list of images.
    #[serde(flatten)]
    pub image: ImageInfo,
    /// All names of this image in the home, including this one.
    pub names: Vec<String>,
    /// The layers, lowest first; empty for an image that is used in place.
    pub layers: Vec<LayerInfo>,
    /// The original config file, if the home has it.
    pub config_json: Option<serde_json::Value>,
}

/// A layer in the home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LayerInfo {
    /// Digest of the blob.
    pub digest: String,
    /// Digest of the uncompressed tar.
    pub diff_id: String,
    /// Length of the blob in bytes.
    pub size: u64,
}

/// Removed images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RemovedImages {
    /// The names; for a damaged record, its ID.
    pub names: Vec<String>,
    /// Bytes freed on the host's disk.
    pub freed: u64,
}
