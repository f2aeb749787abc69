//! The interface to disk builders: verified layers, one after the other.

use std::error::Error as StdError;
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};
use crate::format::Digest;
use crate::image::Image;
use crate::layer::VerifiedLayer;
use crate::progress::{Event, LayerProgress, Pace, Progress};

/// Makes disks from layers (in a throw-away micro-VM, outside of this crate).
pub trait DiskBuilder {
    /// Identifies everything else that the content of a disk depends on: versions of guest kernel,
    /// agent and file system template. A disk of another key is not used.
    fn key(&self) -> String;

    /// Makes a bootable raw disk in the empty file `disk` from all layers, lowest first, each read
    /// to its end. The file must be written in place, and must not be written to after this
    /// returns. It may stay sparse; the store syncs it.
    ///
    /// # Errors
    /// Any failure; the file is discarded. If a layer was at fault, its error is reported instead
    /// of this one.
    fn build(
        &self,
        disk: &Path,
        layers: &mut dyn LayerStreams,
    ) -> Result<(), Box<dyn StdError + Send + Sync>>;
}

/// The layers of an image, lowest first; each must be read to its end before the next.
pub trait LayerStreams: Send {
    /// Number of layers.
    fn count(&self) -> usize;

    /// The next layer; none after the last.
    ///
    /// # Errors
    /// The layer cannot be opened, or the one before was not read to its end.
    fn next_layer(&mut self) -> Result<Option<LayerStream<'_>>>;
}

/// The uncompressed tar of one layer, padded with zeros to whole blocks of 512 bytes: some tools
/// (umoci among them) omit the padding of the last member, which readers do not expect.
///
/// Verified while it is read: damage makes a read fail, at the latest the one that would have
/// reported the end. A layer is valid only once [`Read::read`] has returned 0.
pub struct LayerStream<'a> {
    /// Index of the layer, from 0.
    pub index: usize,
    /// The digest that this tar must have.
    pub diff_id: &'a Digest,
    /// The bytes.
    pub reader: Box<dyn Read + Send + 'a>,
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf)
    }
}

/// What happened to the layers while a builder had them.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Layers read to their verified end.
    pub(crate) verified: usize,
    /// The first error of a layer: the cause of any error of the builder.
    pub(crate) failure: Option<Error>,
}

/// The layers of an [`Image`], verified.
pub(crate) struct VerifiedLayers<'a> {
    image: &'a Image,
    limit: u64,
    progress: &'a dyn Progress,
    handed_out: usize,
    tally: Tally,
}

impl<'a> VerifiedLayers<'a> {
    pub(crate) fn new(image: &'a Image, limit: u64, progress: &'a dyn Progress) -> Self {
        Self { image, limit, progress, handed_out: 0, tally: Tally::default() }
    }

    /// Returns the result.
    pub(crate) fn into_tally(self) -> Tally {
        self.tally
    }
}

impl LayerStreams for VerifiedLayers<'_> {
    fn count(&self) -> usize {
        self.image.layers.len()
    }

    fn next_layer(&mut self) -> Result<Option<LayerStream<'_>>> {
        let index = self.handed_out;
        let Some(layer) = self.image.layers.get(index) else { return Ok(None) };
        if self.tally.verified != index || self.tally.failure.is_some() {
            return Err(Error::Unread {
                image: self.image.reference.to_string(),
                read: self.tally.verified,
                layers: self.image.layers.len(),
            });
        }
        self.handed_out += 1;
        let inner = VerifiedLayer::open(layer, self.image.layer_label(index), self.limit)?;
        let reporter = Reporter { index, image: self.image, progress: self.progress };
        reporter.report(0);
        let reader = ReportingLayer {
            inner,
            reporter,
            pace: Pace::default(),
            tally: &mut self.tally,
            produced: 0,
            padding: None,
        };
        Ok(Some(LayerStream { index, diff_id: &layer.diff_id, reader: Box::new(reader) }))
    }
}

struct Reporter<'a> {
    index: usize,
    image: &'a Image,
    progress: &'a dyn Progress,
}

impl Reporter<'_> {
    fn report(&self, done: u64) {
        self.progress.report(Event::Unpacking(LayerProgress {
            layer: self.index,
            layers: self.image.layers.len(),
            done,
            total: self.image.layers.get(self.index).and_then(|layer| layer.size),
        }));
    }
}

struct ReportingLayer<'a> {
    inner: VerifiedLayer,
    reporter: Reporter<'a>,
    pace: Pace,
    tally: &'a mut Tally,
    /// Bytes of the tar so far.
    produced: u64,
    /// After the verified end: remaining padding.
    padding: Option<u64>,
}

impl ReportingLayer<'_> {
    fn pad(&mut self, left: u64, buf: &mut [u8]) -> usize {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        buf.iter_mut().take(count).for_each(|byte| *byte = 0);
        self.padding = Some(left - count as u64);
        count
    }
}

impl Read for ReportingLayer<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(left) = self.padding {
            return Ok(self.pad(left, buf));
        }
        match self.inner.read_verified(buf) {
            Ok(count) => {
                let done = self.inner.consumed();
                let ends_now = count == 0 && !buf.is_empty();
                if self.pace.is_due(done) || ends_now {
                    self.reporter.report(done);
                }
                self.produced += count as u64;
                if !ends_now {
                    return Ok(count);
                }
                self.tally.verified += 1;
                Ok(self.pad(self.produced.next_multiple_of(512) - self.produced, buf))
            }
            Err(error) => {
                // The builder gets the text, the store keeps the error itself.
                let invalid = io::Error::new(io::ErrorKind::InvalidData, error.to_string());
                self.tally.failure.get_or_insert(error);
                Err(invalid)
            }
        }
    }
}
