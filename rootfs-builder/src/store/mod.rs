//! The image store: a folder with base disks, layers of imported images, and a record for each
//! image it knows.
//!
//! ```text
//! images/
//!   blobs/<algorithm>/<hex>    layers, manifests and configs of pulled and imported images
//!   blobs/….partial            a blob that is being pulled, or whose pull was interrupted
//!   disks/<chain>-<key>.raw    base disks, read-only; shared lock: in use
//!   disks/….raw.part           a disk that is being built; exclusive lock: its builder lives
//!   refs/<hash of name>.json   records
//!   refs/<hash of name>.pull   what a pull that has not ended will need
//!   .lock                      shared while a disk gets record and name, exclusive to remove things
//!   .import.lock               shared while layers are copied or pulled, exclusive to remove layers
//! ```
//!
//! Any number of processes use the store at once. Every file appears by a rename, so that a crash
//! at any moment leaves a store that opens. What a killed process leaves behind is unlocked, and
//! the next process that opens the store removes it. What an interrupted pull has fetched is kept
//! for three days, for the next attempt.
//!
//! Imports and registries share one space of names: a name means what was last imported or pulled
//! under it. A registry is asked only if the store has nothing (see [`PullPolicy`]).

mod blobs;
mod builder;
mod disk;
mod draft;
mod export;
mod folders;
mod garbage;
mod images;
mod import;
mod journal;
mod listing;
mod lock;
mod partial;
mod pull;
mod record;
mod removal;

pub use builder::{DiskBuilder, LayerStream, LayerStreams};
pub use disk::BaseDisk;
pub use images::{DEFAULT_LAYER_LIMIT, ImageStore, PullPolicy};
pub use listing::{DamagedRecord, ImageDetails, LayerDetails, Listing, StoredImage};
pub use removal::{Pruned, Removed};
