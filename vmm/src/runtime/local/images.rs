//! The home's images.

use boxlite_rootfs_builder::{Image, Progress, StoredImage};

use super::Local;
use crate::runtime::call::Reply;
use crate::runtime::disk_builder::MicroVmBuilder;
use crate::runtime::images::{ImageCall, ImageInfo};
use crate::runtime::{Error, Result};

impl Local {
    /// Answers a call about images. Blocks.
    pub(super) fn call_images(&self, call: ImageCall, progress: &dyn Progress) -> Result<Reply> {
        match call {
            ImageCall::List => self.list_images().map(Reply::Images),
            ImageCall::Get { image, .. } => {
                let image = self.images.resolve(&image.parse()?, progress)?;
                self.images.disk(&image, &self.disk_builder(), progress)?;
                self.found(&image)
            }
            ImageCall::Import { source, name } => {
                let source = source.parse()?;
                let image = self.images.import(&source, &name, &self.disk_builder(), progress)?;
                self.found(&image)
            }
            ImageCall::Remove { image, .. } => {
                let before = self.list_images()?;
                let removed = self.images.remove(&image)?;
                let gone = before.into_iter().filter(|info| info.name == removed.name);
                Ok(Reply::Images(gone.collect()))
            }
        }
    }

    pub(super) fn disk_builder(&self) -> MicroVmBuilder {
        MicroVmBuilder::new(&self.guest, &self.launcher)
    }

    fn list_images(&self) -> Result<Vec<ImageInfo>> {
        let listing = self.images.list()?;
        for damaged in &listing.damaged {
            tracing::warn!("the record {}: {}", damaged.id, damaged.error);
        }
        Ok(listing.images.into_iter().map(info).collect())
    }

    /// The record that an image has once its disk is made.
    fn found(&self, image: &Image) -> Result<Reply> {
        let name = image.reference().to_string();
        let stored = self.list_images()?.into_iter().find(|info| info.name == name);
        match stored {
            Some(info) => Ok(Reply::Image(Box::new(info))),
            None => Err(Error::Internal(format!("the image {name} has left no record"))),
        }
    }
}

fn info(stored: StoredImage) -> ImageInfo {
    ImageInfo {
        name: stored.name,
        digest: stored.digest.to_string(),
        config: stored.config,
        origin: stored.imported_from,
        time: stored.time,
        size: stored.size,
        disk: None,
        problem: stored.disk_problem,
    }
}
