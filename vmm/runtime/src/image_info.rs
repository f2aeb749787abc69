//! What is known of the images of a home.

use std::path::PathBuf;
use std::time::SystemTime;

use boxlite_rootfs_builder::ImageConfig;
use serde::{Deserialize, Serialize};

use crate::state::millis;

/// An image in the home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Its name; of one that was used without being imported, the reference.
    pub name: String,
    /// The digest of its manifest.
    pub digest: String,
    /// The digest of the index in which it was found, which registries show, if there is one.
    pub index: Option<String>,
    /// The OCI chain ID of its layers.
    pub chain_id: String,
    /// What to run and how.
    pub config: ImageConfig,
    /// From where it was imported or pulled; none: it is used where it lies.
    pub origin: Option<String>,
    /// When it came into the home.
    #[serde(with = "millis")]
    pub time: SystemTime,
    /// Bytes that its disk and layers take on the host's disk.
    pub size: u64,
    /// Its base disk, if that has been made.
    pub disk: Option<PathBuf>,
    /// What is wrong with its disk, if anything. It is made anew when next used.
    pub problem: Option<String>,
}

/// All that is known of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageDetails {
    /// What the list says of it.
    #[serde(flatten)]
    pub image: ImageInfo,
    /// All names under which the home has this image, this one included.
    pub names: Vec<String>,
    /// Its layers, lowest first; none of an image that is used where it lies.
    pub layers: Vec<LayerInfo>,
    /// Its config as its maker wrote it, where the home has that.
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

/// Images that were removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RemovedImages {
    /// Their names; the ID, of a damaged record.
    pub names: Vec<String>,
    /// Bytes that this freed on the host's disk.
    pub freed: u64,
}
