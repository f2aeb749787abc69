//! Serves calls about images.

pub(super) mod load;
pub(super) mod save;

use boxlite_rootfs_builder::{Image, Progress, StoredImage};

use super::Local;
use crate::call::ImageCall;
use crate::call::Reply;
use crate::image_info::{ImageDetails, ImageInfo, LayerInfo, RemovedImages};
use crate::local::disk_builder::MicroVmBuilder;
use crate::{Error, Result};

impl Local {
    /// Serves a call about images. Blocks.
    pub(super) fn call_images(&self, call: ImageCall, progress: &dyn Progress) -> Result<Reply> {
        match call {
            ImageCall::List => self.list_images().map(Reply::Images),
            ImageCall::Get { image, pull, platform } => {
                let image = image.parse().map_err(Error::image)?;
                let found = self.images.resolve_with(&image, pull, platform.as_ref(), progress);
                let image = found.map_err(Error::image)?;
                self.images.disk(&image, &self.disk_builder(), progress).map_err(Error::image)?;
                self.found(&image)
            }
            ImageCall::Import { source, name } => {
                let source = source.parse().map_err(Error::image)?;
                let imported = self.images.import(&source, &name, &self.disk_builder(), progress);
                let image = imported.map_err(Error::image)?;
                self.found(&image)
            }
            ImageCall::Load { file } => {
                let images = self.images.load(&file, progress).map_err(Error::image)?;
                self.loaded(&images).map(Reply::Images)
            }
            ImageCall::Details { image } => {
                let found = self.images.inspect(&image).map_err(Error::image)?;
                let layers = found.layers.into_iter().map(|layer| LayerInfo {
                    digest: layer.digest.to_string(),
                    diff_id: layer.diff_id.to_string(),
                    size: layer.size,
                });
                Ok(Reply::ImageDetails(Box::new(ImageDetails {
                    image: info(found.image),
                    names: found.names,
                    layers: layers.collect(),
                    config_json: found
                        .config_json
                        .and_then(|json| serde_json::from_slice(&json).ok()),
                })))
            }
            ImageCall::Remove { image, force } => {
                let used = self.store.image_digests()?;
                let in_use = |image: &StoredImage| used.contains(&image.digest.to_string());
                let removed =
                    self.images.remove_with(&image, force, &in_use).map_err(Error::image)?;
                let names = vec![removed.name];
                Ok(Reply::Removed(RemovedImages { names, freed: removed.freed }))
            }
            ImageCall::Prune { all } => {
                let used = self.store.image_digests()?;
                let in_use = |image: &StoredImage| used.contains(&image.digest.to_string());
                let pruned = self.images.prune(all, &in_use).map_err(Error::image)?;
                Ok(Reply::Removed(RemovedImages { names: pruned.removed, freed: pruned.freed }))
            }
        }
    }

    pub(super) fn disk_builder(&self) -> MicroVmBuilder {
        MicroVmBuilder::new(&self.guest, &self.launcher, self.debug)
    }

    fn list_images(&self) -> Result<Vec<ImageInfo>> {
        let listing = self.images.list().map_err(Error::image)?;
        for damaged in &listing.damaged {
            tracing::warn!("the record {}: {}", damaged.id, damaged.error);
        }
        Ok(listing.images.into_iter().map(info).collect())
    }

    /// The records of loaded images.
    pub(super) fn loaded(&self, images: &[Image]) -> Result<Vec<ImageInfo>> {
        let names: Vec<_> = images.iter().map(|image| image.reference().to_string()).collect();
        let mut listed = self.list_images()?;
        listed.retain(|info| names.contains(&info.name));
        Ok(listed)
    }

    /// The record of an image whose disk has been built.
    fn found(&self, image: &Image) -> Result<Reply> {
        let name = image.reference().to_string();
        let stored = self.list_images()?.into_iter().find(|info| info.name == name);
        match stored {
            Some(info) => Ok(Reply::Image(Box::new(info))),
            None => Err(Error::internal(format!("the image {name} has no record"))),
        }
    }
}

fn info(stored: StoredImage) -> ImageInfo {
    ImageInfo {
        name: stored.name,
        digest: stored.digest.to_string(),
        index: stored.index.map(|digest| digest.to_string()),
        chain_id: stored.chain_id.to_string(),
        config: stored.config,
        origin: stored.imported_from,
        time: stored.time,
        size: stored.size,
        disk: stored.disk,
        problem: stored.disk_problem,
    }
}
