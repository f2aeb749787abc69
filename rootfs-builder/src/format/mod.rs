//! OCI's and Docker's formats: digests, names, platforms, manifests, configs. Parsers of text and
//! JSON, without I/O and without any other module of this crate.

mod config;
mod digest;
mod manifest;
mod platform;
mod reference;

pub(crate) use config::{ConfigBlob, or_default};
pub use config::{ImageConfig, ImageHealth};
pub(crate) use digest::Hasher;
pub use digest::{Algorithm, Digest, InvalidDigest};
pub(crate) use manifest::{
    Descriptor, DescriptorPlatform, Document, MAX_CONFIG_BYTES, MAX_LAYERS, MAX_MANIFEST_BYTES,
    is_config_type, is_layer_type,
};
pub(crate) use platform::Platform;
pub use platform::{ImagePlatform, InvalidPlatform};
pub(crate) use reference::{DOCKER_HUB, InvalidReference, is_host, is_path_component, names_match};
pub use reference::{ImageName, ImageReference, InvalidName};
