//! Layers as verified streams: decompressed and hashed in one pass.

mod compression;
mod streams;
mod verified;

pub use compression::{Compression, Decoder};
pub(crate) use streams::VerifiedLayers;
pub use streams::{LayerStream, LayerStreams};
pub(crate) use verified::{Metered, VerifiedLayer};
