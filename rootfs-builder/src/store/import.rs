//! Images into the store: imports under a name, archives, further names.

use std::io::Read;
use std::path::Path;

use super::blobs::{Copied, LayerCopier, store_documents};
use super::builder::DiskBuilder;
use super::images::ImageStore;
use super::lock::StoreLock;
use super::record::{self, Records};
use crate::error::{Error, Remedy, Result};
use crate::format::{Digest, ImageName, ImageReference, InvalidName, Platform};
use crate::image::{Image, Origin};
use crate::layer::Layer;
use crate::progress::Progress;
use crate::source::{Archive, Files as _};
use crate::sys::Lock;

impl ImageStore {
    /// Copies an image into the store under a name of its own, and builds its disk.
    ///
    /// # Errors
    /// The name is invalid; errors of [`resolve`](Self::resolve) and [`disk`](Self::disk).
    pub fn import(
        &self,
        reference: &ImageReference,
        name: &str,
        builder: &dyn DiskBuilder,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let name = parse_name(name)?;
        let image = self.resolve(reference, progress)?;
        let guard = StoreLock::take(&self.folders.import_lock(), Lock::Shared)?;
        let image = self.keep(image, name, &mut Copied::default(), progress)?;
        self.disk(&image, builder, progress)?;
        drop(guard);
        self.collect_garbage();
        Ok(image)
    }

    /// Gives an image of the store another name; an image that had the name loses it.
    ///
    /// # Errors
    /// The image does not exist or is only used where it lies; the name is invalid.
    pub fn tag(&self, text: &str, name: &str) -> Result<()> {
        let name = parse_name(name)?;
        let _guard = StoreLock::take(&self.folders.lock(), Lock::Shared)?;
        let records = Records::load_all(&self.folders)?;
        let record = records.one(text)?;
        record.import()?;
        record.renamed(&name).save(&self.folders)
    }

    /// Copies all images of an archive (`docker save`, or an OCI layout in a tar, compressed or
    /// not) into the store, under their names in the archive. Disks are built on first use.
    ///
    /// # Errors
    /// The archive is damaged, or has an image for another platform or without a name: none of its
    /// images is in the store then.
    pub fn load(&self, file: &Path, progress: &dyn Progress) -> Result<Vec<Image>> {
        let archive = Archive::open(file, &self.scratch(), progress)?;
        self.load_archive(&archive, progress)
    }

    /// As [`load`](Self::load), for an archive that is read from a stream, to its end. Until its
    /// images are copied, its expanded length is used on the store's file system.
    ///
    /// # Errors
    /// As [`load`](Self::load); the stream cannot be read.
    pub fn load_from(&self, input: &mut dyn Read, progress: &dyn Progress) -> Result<Vec<Image>> {
        let archive = Archive::receive(input, &self.scratch(), progress)?;
        self.load_archive(&archive, progress)
    }

    fn load_archive(&self, archive: &Archive, progress: &dyn Progress) -> Result<Vec<Image>> {
        // Resolve every name, manifest and config before copying the first layer.
        let host = Platform::host();
        let find = |tag: String| {
            let name = name_in_archive(archive, &tag)?;
            let parts = archive.resolve(Some(&tag), &host)?;
            Ok((name, Image::new(&archive.reference(tag), parts)?))
        };
        let found = archive.tags()?.into_iter().map(find).collect::<Result<Vec<_>>>()?;
        let mut copied = Copied::default();
        let mut loaded = Vec::new();
        let guard = StoreLock::take(&self.folders.import_lock(), Lock::Shared)?;
        for (name, image) in found {
            loaded.push(self.keep(image, name, &mut copied, progress)?);
        }
        loaded.iter().try_for_each(|image| record::save(&self.folders, image))?;
        drop(guard);
        self.collect_garbage();
        Ok(loaded)
    }

    /// Copies layers, manifest and config of an image into the store. The caller holds the import
    /// lock until the record is saved.
    fn keep(
        &self,
        mut image: Image,
        name: ImageName,
        copied: &mut Copied,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let copier = LayerCopier { folders: &self.folders, limit: self.layer_limit, progress };
        let layers = copier.copy(&image, copied)?;
        image.origin = Some(match image.origin.take() {
            Some(origin) => origin,
            None => self.keep_documents(&mut image, &layers)?,
        });
        image.layers = layers;
        image.reference = ImageReference::Name(name);
        Ok(image)
    }

    /// Stores manifest and config of an image. A manifest that names other blobs, because layers
    /// were compressed, is not stored.
    fn keep_documents(&self, image: &mut Image, layers: &[Layer]) -> Result<Origin> {
        let mut documents = std::mem::take(&mut image.documents);
        let digests = |layers: &[Layer]| -> Vec<_> {
            layers.iter().map(|layer| layer.digest.clone()).collect()
        };
        if digests(layers) != digests(&image.layers) {
            documents.manifest = None;
        }
        store_documents(&self.folders, &image.digest, &documents)?;
        Ok(Origin {
            from: image.reference.to_string(),
            index: None,
            manifest: documents.manifest.map(|_| image.digest.clone()),
            config: documents.config.as_deref().map(Digest::sha256),
        })
    }
}

/// The name for the image of this tag. A tag without a name belongs to an image that is called like
/// its file.
fn name_in_archive(archive: &Archive, tag: &str) -> Result<ImageName> {
    if tag.contains([':', '/']) {
        return parse_name(tag);
    }
    match archive.stem() {
        Some(stem) => parse_name(&format!("{}:{tag}", stem.to_lowercase())),
        None => Err(Error::Missing {
            what: format!("the name of the image tagged {tag:?} in {}", archive.label()),
            remedy: Remedy::NameArchive,
        }),
    }
}

fn parse_name(text: &str) -> Result<ImageName> {
    text.parse().map_err(|reason: InvalidName| Error::InvalidReference {
        text: text.to_owned(),
        reason: reason.to_string(),
    })
}
