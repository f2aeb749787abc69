//! Layers as streams: the bytes as they are stored (a file, a part of one, a directory's tar),
//! decompressed and verified in one pass.

mod compression;
mod directory;
mod location;
mod verified;

pub use compression::{Compression, Decoder};
pub(crate) use directory::DirectoryTar;
pub(crate) use location::{Layer, Location, Slice};
pub(crate) use verified::{Metered, VerifiedLayer};
