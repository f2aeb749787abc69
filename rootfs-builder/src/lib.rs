//! From OCI images to bootable disks: finds images in registries, layouts, archives and directories, verifies
//! them, hands their layers to a [`DiskBuilder`], and caches the disks.
//!
//! ```no_run
//! use boxlite_rootfs_builder::{DiskBuilder, ImageReference, ImageStore, Silent};
//!
//! # fn example(builder: &dyn DiskBuilder) -> Result<(), boxlite_rootfs_builder::Error> {
//! let store = ImageStore::open("/home/me/.boxlite/images")?;
//! let reference: ImageReference = "alpine:3.20".parse()?; // or oci:DIR, docker-archive:FILE, rootfs:DIR
//! let image = store.resolve(&reference, &Silent)?;
//! let disk = store.disk(&image, builder, &Silent)?; // in use for as long as it is open
//! println!("{:?} on {}", image.config().cmd, disk.path().display());
//! # Ok(())
//! # }
//! ```
//!
//! A module uses those below it, never one above or beside it:
//!
//! ```text
//!   store                  blobs, records, disks; pull, import, export, removal
//!     │  └───────────┐
//!   source         registry   images on this machine; manifests and blobs of registries, logins
//!     │              │
//!   resolve          │     from a manifest or index (trait Content) to the image for this machine
//!     │              │
//!   image            │     what a source yields: identity, config, layers, documents
//!     │              │
//!   layer            │     layers as streams: location, decompression, verification
//!     └──────┬───────┘
//!   file, error            bounded reads of files; errors
//!            │
//!   format, sys, progress  digests, names, manifests, configs; system calls; events
//! ```
//!
//! The content of images is hostile. Sizes are bounded before anything is read (manifests 4 MiB,
//! configs 8 MiB, 512 layers, 64 GiB for a decompressed layer) and checked against digests. A
//! layer is verified in the one pass that reads it, in constant memory
//! (a zstd layer may ask for a window of up to 128 MiB). A registry's blobs have the length that the manifest
//! says; tokens, errors and redirects of registries are bounded, and a login is sent to its own
//! registry only. Layers are not unpacked here: the builder does that inside a throw-away VM.
//!
//! All calls block, those that use the network included; [`Progress::is_cancelled`] ends them.

#![forbid(unsafe_code)]

mod error;
mod file;
mod format;
mod image;
mod layer;
mod progress;
mod registry;
mod resolve;
mod source;
mod store;
mod sys;

pub use error::{Error, RegistryProblem, Remedy, Result};
pub use format::{
    Algorithm, Digest, ImageConfig, ImageHealth, ImageName, ImagePlatform, ImageReference,
    InvalidDigest, InvalidName, InvalidPlatform,
};
pub use image::Image;
pub use layer::{Compression, Decoder};
pub use progress::{Event, LayerProgress, Progress, Silent};
pub use registry::{LoginStore, RegistryConfig, RegistryOptions};
pub use store::{
    BaseDisk, DEFAULT_LAYER_LIMIT, DamagedRecord, DiskBuilder, ImageDetails, ImageStore,
    LayerDetails, LayerStream, LayerStreams, Listing, Pruned, PullPolicy, Removed, StoredImage,
};
