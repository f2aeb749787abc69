//! A resolved image: its identity, config and layers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Remedy, Result};
use crate::format::{Digest, ImageConfig, ImageReference};
use crate::layer::Layer;

/// A resolved image: manifest and config are verified, layers are verified when they are read.
#[derive(Clone, Debug)]
pub struct Image {
    pub(crate) reference: ImageReference,
    pub(crate) digest: Digest,
    pub(crate) config: ImageConfig,
    pub(crate) chain_id: Digest,
    pub(crate) layers: Vec<Layer>,
    pub(crate) documents: Documents,
    /// None for an image that is used where it lies.
    pub(crate) origin: Option<Origin>,
}

impl Image {
    pub(crate) fn new(reference: &ImageReference, resolved: Resolved) -> Result<Self> {
        let chain_id = chain_id(resolved.layers.iter().map(|layer| &layer.diff_id));
        let chain_id = chain_id.ok_or_else(|| Error::Unsupported {
            what: format!("{reference}: an image without layers"),
            remedy: Remedy::Other("there is nothing to boot in it; use another image"),
        })?;
        Ok(Self {
            reference: reference.clone(),
            digest: resolved.digest,
            config: resolved.config,
            chain_id,
            layers: resolved.layers,
            documents: resolved.documents,
            origin: None,
        })
    }

    /// The reference it was resolved from; after an import, its new name.
    pub fn reference(&self) -> &ImageReference {
        &self.reference
    }

    /// Identity of the image: digest of the manifest; of the config if the source has no manifest
    /// (`docker save`); of the tar stream for a directory.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// What to run and how.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// Identity of the file system: the OCI chain ID of all layers.
    pub fn chain_id(&self) -> &Digest {
        &self.chain_id
    }

    /// Number of layers.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Whether it was pulled from a registry under this name, and can be pulled again.
    pub(crate) fn is_pulled(&self) -> bool {
        let again = format!("docker://{}", self.reference);
        self.origin.as_ref().is_some_and(|origin| origin.from == again)
    }

    /// Name of a layer in messages.
    pub(crate) fn layer_label(&self, index: usize) -> String {
        let layer = self.layers.get(index);
        let digest = layer.map(|layer| layer.digest.as_ref().unwrap_or(&layer.diff_id).to_string());
        let digest = digest.unwrap_or_default();
        format!("layer {} of {} of {} ({digest})", index + 1, self.layers.len(), self.reference)
    }
}

/// What a source yields for an image.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) digest: Digest,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<Layer>,
    pub(crate) documents: Documents,
}

/// JSON documents of an image as they were found, to be stored with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Documents {
    /// The manifest that [`Image::digest`] is the digest of; none if the image has no manifest.
    pub(crate) manifest: Option<Arc<[u8]>>,
    /// The image config.
    pub(crate) config: Option<Arc<[u8]>>,
}

/// Where an image in the store came from, and which of its documents are in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The reference it was pulled or imported from.
    pub(crate) from: String,
    /// Digest of the index it was selected from, if there was one.
    #[serde(default)]
    pub(crate) index: Option<Digest>,
    /// Digest of its manifest in the store.
    #[serde(default)]
    pub(crate) manifest: Option<Digest>,
    /// Digest of its config in the store.
    #[serde(default)]
    pub(crate) config: Option<Digest>,
}

/// The OCI chain ID of layers, lowest first; none if there are no layers. (OCI image spec, config,
/// "Layer ChainID")
pub(crate) fn chain_id<'a>(diff_ids: impl IntoIterator<Item = &'a Digest>) -> Option<Digest> {
    diff_ids.into_iter().fold(None, |chain: Option<Digest>, diff_id| {
        Some(match chain {
            None => diff_id.clone(),
            Some(chain) => Digest::sha256(format!("{chain} {diff_id}").as_bytes()),
        })
    })
}

#[cfg(test)]
mod tests;
