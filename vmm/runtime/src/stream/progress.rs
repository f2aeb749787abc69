//! Progress of work on images, for sending over a stream.

use std::path::PathBuf;

use boxlite_rootfs_builder::{Event, LayerProgress, Progress};
use serde::{Deserialize, Serialize};

/// An [`Event`] that owns its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OwnedEvent {
    Expanding { file: PathBuf, done: u64, total: Option<u64> },
    Scanning { dir: PathBuf, done: u64 },
    Waiting { file: PathBuf },
    Asking { registry: String },
    Pulling(Layer),
    Present(Layer),
    Copying(Layer),
    Unpacking(Layer),
    Syncing,
    Warning(String),
}

/// A [`LayerProgress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    layer: usize,
    layers: usize,
    done: u64,
    total: Option<u64>,
}

impl Layer {
    fn take(progress: LayerProgress) -> Self {
        let LayerProgress { layer, layers, done, total } = progress;
        Self { layer, layers, done, total }
    }

    fn give(self) -> LayerProgress {
        let Self { layer, layers, done, total } = self;
        LayerProgress { layer, layers, done, total }
    }
}

impl OwnedEvent {
    /// None for an event that this release cannot encode.
    pub(crate) fn new(event: Event<'_>) -> Option<Self> {
        Some(match event {
            Event::Expanding { file, done, total } => {
                Self::Expanding { file: file.to_owned(), done, total }
            }
            Event::Scanning { dir, done } => Self::Scanning { dir: dir.to_owned(), done },
            Event::Waiting { file } => Self::Waiting { file: file.to_owned() },
            Event::Asking { registry } => Self::Asking { registry: registry.to_owned() },
            Event::Pulling(layer) => Self::Pulling(Layer::take(layer)),
            Event::Present(layer) => Self::Present(Layer::take(layer)),
            Event::Copying(layer) => Self::Copying(Layer::take(layer)),
            Event::Unpacking(layer) => Self::Unpacking(Layer::take(layer)),
            Event::Syncing => Self::Syncing,
            Event::Warning(text) => Self::Warning(text.to_owned()),
            _ => return None,
        })
    }

    pub(crate) fn tell(&self, progress: &dyn Progress) {
        progress.report(match self {
            Self::Expanding { file, done, total } => {
                Event::Expanding { file, done: *done, total: *total }
            }
            Self::Scanning { dir, done } => Event::Scanning { dir, done: *done },
            Self::Waiting { file } => Event::Waiting { file },
            Self::Asking { registry } => Event::Asking { registry },
            Self::Pulling(layer) => Event::Pulling(layer.give()),
            Self::Present(layer) => Event::Present(layer.give()),
            Self::Copying(layer) => Event::Copying(layer.give()),
            Self::Unpacking(layer) => Event::Unpacking(layer.give()),
            Self::Syncing => Event::Syncing,
            Self::Warning(text) => Event::Warning(text),
        });
    }
}
