//! The images of a home.

pub(crate) mod loaded;
pub(crate) mod saved;

use std::path::Path;
use std::sync::Arc;

use boxlite_rootfs_builder::{ImagePlatform, Progress, PullPolicy, Silent};
use tokio::io::AsyncRead;

use self::saved::SavedImages;
use crate::call::{Call, Channel, ImageCall, Reply};
use crate::host::Host;
use crate::image_info::{ImageDetails, ImageInfo, RemovedImages};
use crate::{Error, Result};

/// The images of a home.
#[derive(Clone, Debug)]
pub struct Images(Host);

impl Images {
    pub(crate) fn new(host: Host) -> Self {
        Self(host)
    }

    async fn call(&self, call: ImageCall, progress: Arc<dyn Progress>) -> Result<Reply> {
        self.0.call(Call::Images(call), progress).await
    }

    /// Lists all images, by name.
    pub async fn list(&self) -> Result<Vec<ImageInfo>> {
        self.call(ImageCall::List, Arc::new(Silent)).await?.images()
    }

    /// Describes an image in full detail, found by its name, reference or digest.
    pub async fn details(&self, image: impl Into<String>) -> Result<ImageDetails> {
        let call = ImageCall::Details { image: image.into() };
        self.call(call, Arc::new(Silent)).await?.details()
    }

    /// Copies all images of an archive into the home, under their names in the archive. The archive is a file of
    /// [`save`](Self::save) or `docker save`, or a tar of an OCI layout, compressed or not. The images' disks are built
    /// on first use.
    ///
    /// # Errors
    /// The archive is damaged, or an image in it has no name or is for another platform. No image is loaded then.
    pub async fn load(
        &self,
        file: impl AsRef<Path>,
        progress: impl Progress + 'static,
    ) -> Result<Vec<ImageInfo>> {
        let file = file.as_ref();
        let unknown = Error::copy(file);
        let file = std::path::absolute(file).map_err(unknown)?;
        self.call(ImageCall::Load { file }, Arc::new(progress)).await?.images()
    }

    /// Like [`load`](Self::load), from a stream, which is read to its end. Dropping the future cancels the transfer.
    ///
    /// # Errors
    /// Those of [`load`](Self::load); the stream cannot be read.
    pub async fn load_from(
        &self,
        input: impl AsyncRead + Unpin,
        progress: impl Progress,
    ) -> Result<Vec<ImageInfo>> {
        loaded::send(self.0.open(Channel::LoadedImages).await?, input, &progress).await
    }

    /// Exports imported or pulled images as the tar of an OCI layout, which the caller reads to its end.
    pub async fn save<S: Into<String>>(
        &self,
        images: impl IntoIterator<Item = S>,
    ) -> Result<SavedImages> {
        let images = images.into_iter().map(Into::into).collect();
        Ok(SavedImages::new(self.0.open(Channel::SavedImages { images }).await?))
    }

    /// Fetches an image as `pull` says, and builds its disk.
    pub async fn get(
        &self,
        image: impl Into<String>,
        pull: PullPolicy,
        progress: impl Progress + 'static,
    ) -> Result<ImageInfo> {
        self.get_for(image, None, pull, progress).await
    }

    /// Like [`get`](Self::get), for a platform; none: that of the machine that runs the boxes, which can run no other
    /// architecture.
    ///
    /// # Errors
    /// The image has no such platform, or boxes cannot run it.
    pub async fn get_for(
        &self,
        image: impl Into<String>,
        platform: Option<ImagePlatform>,
        pull: PullPolicy,
        progress: impl Progress + 'static,
    ) -> Result<ImageInfo> {
        let call = ImageCall::Get { image: image.into(), pull, platform };
        self.call(call, Arc::new(progress)).await?.image()
    }

    /// Copies an image into the home under `name`, and builds its disk.
    pub async fn import(
        &self,
        source: impl Into<String>,
        name: impl Into<String>,
        progress: impl Progress + 'static,
    ) -> Result<ImageInfo> {
        let call = ImageCall::Import { source: source.into(), name: name.into() };
        self.call(call, Arc::new(progress)).await?.image()
    }

    /// Removes an image, found by name, reference or digest. An image that boxes were created from is removed only
    /// with `force`; the boxes are not affected.
    pub async fn remove(&self, image: impl Into<String>, force: bool) -> Result<RemovedImages> {
        let call = ImageCall::Remove { image: image.into(), force };
        self.call(call, Arc::new(Silent)).await?.removed()
    }

    /// Removes unused data: leftovers of killed processes, and disks of images that are used in place. With `all`,
    /// also removes every image that no box was created from.
    pub async fn prune(&self, all: bool) -> Result<RemovedImages> {
        self.call(ImageCall::Prune { all }, Arc::new(Silent)).await?.removed()
    }
}
