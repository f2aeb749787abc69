//! Verified reading of one layer: its end is reported only after every digest and length matched.

use std::io::{self, Read};
use std::path::PathBuf;

use super::compression::Decoder;
use super::location::{Layer, Location};
use crate::error::{Error, Result};
use crate::format::{Digest, Hasher};

/// Counts and hashes what is read from `R`, and checks both at the end.
pub(crate) struct Metered<R> {
    inner: R,
    count: u64,
    expected_len: Option<u64>,
    hash: Option<(Hasher, Digest)>,
}

impl<R: Read> Metered<R> {
    /// Expects `len` bytes and `digest`, where given.
    pub(crate) fn new(inner: R, len: Option<u64>, digest: Option<Digest>) -> Self {
        let hash = digest.map(|digest| (Hasher::new(digest.algorithm()), digest));
        Self { inner, count: 0, expected_len: len, hash }
    }

    /// Bytes read so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Reads the rest, then checks length and digest.
    pub(crate) fn finish(&mut self, what: &str) -> Result<()> {
        let rest = io::copy(self, &mut io::sink());
        rest.map_err(|error| Error::from_io(error, || what.to_owned()))?;
        if let Some(len) = self.expected_len.filter(|len| *len != self.count) {
            return Err(Error::corrupt(
                what,
                format!("it has {} bytes instead of {len}", self.count),
            ));
        }
        match self.hash.take() {
            Some((hasher, expected)) => check(what, hasher, &expected),
            None => Ok(()),
        }
    }
}

fn check(what: &str, hasher: Hasher, expected: &Digest) -> Result<()> {
    let actual = hasher.finish();
    if actual == *expected {
        return Ok(());
    }
    Err(Error::DigestMismatch { what: what.to_owned(), expected: expected.clone(), actual })
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.count += count as u64;
        if self.expected_len.is_some_and(|len| self.count > len) {
            let reason = "it is longer than the image says";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        if let Some((hasher, _)) = &mut self.hash {
            hasher.update(buf.get(..count).unwrap_or_default());
        }
        Ok(count)
    }
}

/// The uncompressed tar of a layer. It ends (`Ok(0)`) only after blob digest, length and diff ID
/// matched; until then nothing that was read can be relied on.
pub(crate) struct VerifiedLayer {
    what: String,
    decoder: Decoder<Metered<Box<dyn Read + Send>>>,
    diff: Option<(Hasher, Digest)>,
    produced: u64,
    limit: u64,
    is_sound: bool,
    directory: Option<PathBuf>,
}

impl VerifiedLayer {
    /// Opens a layer of at most `limit` bytes uncompressed; `what` names it in errors.
    pub(crate) fn open(layer: &Layer, what: String, limit: u64) -> Result<Self> {
        // The digest of an uncompressed blob is its diff ID: do not compute it twice.
        let blob_digest = layer.digest.clone().filter(|digest| *digest != layer.diff_id);
        let blob = Metered::new(layer.location.open()?, layer.size, blob_digest);
        let decoder = Decoder::new(blob).map_err(|error| Error::from_io(error, || what.clone()))?;
        let diff_id = layer.diff_id.clone();
        let diff = Some((Hasher::new(diff_id.algorithm()), diff_id));
        let directory = match &layer.location {
            Location::Directory(dir) => Some(dir.clone()),
            _ => None,
        };
        Ok(Self { what, decoder, diff, produced: 0, limit, is_sound: true, directory })
    }

    /// Bytes read of the blob as stored.
    pub(crate) fn consumed(&mut self) -> u64 {
        self.decoder.input().count()
    }

    /// Reads; after an error every further read fails, too.
    pub(crate) fn read_verified(&mut self, buf: &mut [u8]) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if !self.is_sound {
            return Err(Error::corrupt(&self.what, "it was not read to its end"));
        }
        let result = self.step(buf);
        self.is_sound = result.is_ok();
        result.map_err(|error| match (error, &self.directory) {
            // Not damage: the directory changed after it was resolved.
            (Error::Corrupt { .. } | Error::DigestMismatch { .. }, Some(dir)) => {
                Error::Changed { path: dir.clone() }
            }
            (error, _) => error,
        })
    }

    fn step(&mut self, buf: &mut [u8]) -> Result<usize> {
        let Some((hasher, _)) = &mut self.diff else {
            return Ok(0); // ended, and verified
        };
        let count = loop {
            match self.decoder.read(buf) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::from_io(error, || self.what.clone())),
                Ok(count) => break count,
            }
        };
        hasher.update(buf.get(..count).unwrap_or_default());
        self.produced += count as u64;
        if self.produced > self.limit {
            let what = format!("{}, decompressed,", self.what);
            return Err(Error::TooLarge { what, limit: self.limit });
        }
        if count == 0 {
            self.decoder.input().finish(&self.what)?;
            if let Some((hasher, expected)) = self.diff.take() {
                check(&format!("the content of {}", self.what), hasher, &expected)?;
            }
        }
        Ok(count)
    }
}

impl Read for VerifiedLayer {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_verified(buf).map_err(Error::into_io)
    }
}

#[cfg(test)]
mod tests;
