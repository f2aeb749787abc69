//! From OCI images to bootable disks: finds images in registries, layouts, archives and directories, verifies
//! them, hands their layers to a [`DiskBuilder`], and caches the disks it makes.
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
//! Images come from strangers. Whatever they say is bounded before it is read (manifests 4 MiB,
//! configs 8 MiB, 512 layers, 64 GiB for a decompressed layer) and checked against its digest; a
//! layer is verified while it is read, in one pass, and no more of it than a buffer is in memory
//! (a zstd layer may ask for a window of up to 128 MiB). Registries are held to what a manifest says of the
//! length of its blobs; their tokens, errors and redirects are bounded, and a login goes to its own
//! registry only. All calls block, also those that use the network; [`Progress::is_cancelled`] ends those. Unpacking it is left to the builder, who
//! does it inside a throw-away virtual machine.

#![forbid(unsafe_code)]

mod config;
mod digest;
mod error;
mod image;
mod layer;
mod manifest;
mod platform;
mod progress;
mod reference;
mod registry;
mod source;
mod store;
mod sys;

pub use config::{ImageConfig, ImageHealth};
pub use digest::{Algorithm, Digest, InvalidDigest};
pub use error::{Error, Result};
pub use image::Image;
pub use layer::{Compression, Decoder, LayerStream, LayerStreams};
pub use progress::{Event, LayerProgress, Progress, Silent};
pub use reference::{ImageName, ImageReference, InvalidName};
pub use registry::{LoginStore, RegistryConfig, RegistryOptions, RegistryProblem};
pub use store::{
    BaseDisk, DEFAULT_LAYER_LIMIT, DamagedRecord, DiskBuilder, ImageDetails, ImageStore,
    LayerDetails, Listing, Pruned, PullPolicy, Removed, StoredImage,
};
