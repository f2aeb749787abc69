//! One layer, read: the end of it is only reported when every digest and length was right.

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
    /// Expects `len` bytes and that digest, where they are known.
    pub(crate) fn new(inner: R, len: Option<u64>, digest: Option<Digest>) -> Self {
        let hash = digest.map(|digest| (Hasher::new(digest.algorithm()), digest));
        Self { inner, count: 0, expected_len: len, hash }
    }

    /// Bytes read so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Reads what is left, and checks length and digest of it all.
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

/// The uncompressed tar of a layer. It ends (`Ok(0)`) only after the digest of the blob, its
/// length and the diff id turned out right; until then, whatever was read is not to be relied on.
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
    /// Opens a layer that may have `limit` bytes when decompressed; `what` names it in errors.
    pub(crate) fn open(layer: &Layer, what: String, limit: u64) -> Result<Self> {
        // A layer stored uncompressed has one digest by two names: do not compute it twice.
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

    /// Bytes read of the blob as it is stored.
    pub(crate) fn consumed(&mut self) -> u64 {
        self.decoder.input().count()
    }

    /// Reads; an error stays one, however often one asks.
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
            // Nobody lied: it is not the directory any more that was there when it was resolved.
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
mod tests {
    use super::super::compression::tests::{gzip, zstd};
    use super::*;

    fn layer(dir: &tempfile::TempDir, blob: &[u8], plain: &[u8]) -> Layer {
        let path = dir.path().join("blob");
        std::fs::write(&path, blob).unwrap();
        Layer {
            digest: Some(Digest::sha256(blob)),
            size: Some(blob.len() as u64),
            diff_id: Digest::sha256(plain),
            location: Location::File(path),
        }
    }

    fn read(layer: &Layer, limit: u64) -> Result<Vec<u8>> {
        let mut stream = VerifiedLayer::open(layer, "the layer".into(), limit)?;
        let mut all = Vec::new();
        let mut buf = [0; 1000];
        loop {
            match stream.read_verified(&mut buf) {
                Ok(0) => {
                    assert_eq!(stream.read_verified(&mut buf).unwrap(), 0);
                    return Ok(all);
                }
                Ok(count) => all.extend(&buf[..count]),
                Err(error) => {
                    // It must not look like an end afterwards.
                    assert!(stream.read(&mut buf).is_err());
                    return Err(error);
                }
            }
        }
    }

    #[test]
    fn sound_layers_come_through() {
        let dir = tempfile::tempdir().unwrap();
        let plain = vec![7; 100_000];
        for blob in [plain.clone(), gzip(&plain), zstd(&plain)] {
            assert_eq!(read(&layer(&dir, &blob, &plain), 100_000).unwrap(), plain);
        }
    }

    #[test]
    fn every_lie_is_an_error_before_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let plain: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for blob in [plain.clone(), gzip(&plain), zstd(&plain)] {
            let good = layer(&dir, &blob, &plain);
            let other = Digest::sha256(b"other");

            let wrong_blob = Layer { digest: Some(other.clone()), ..good.clone() };
            assert!(matches!(
                read(&wrong_blob, u64::MAX),
                Err(Error::DigestMismatch { expected, .. }) if expected == other
            ));
            let wrong_diff = Layer { diff_id: other.clone(), ..good.clone() };
            let error = read(&wrong_diff, u64::MAX).unwrap_err();
            assert!(error.to_string().contains("the content of the layer"), "{error}");
            for size in [blob.len() as u64 - 1, blob.len() as u64 + 1] {
                let wrong_size = Layer { size: Some(size), ..good.clone() };
                assert!(matches!(read(&wrong_size, u64::MAX), Err(Error::Corrupt { .. })));
            }
            let bomb = read(&good, plain.len() as u64 - 1);
            assert!(matches!(bomb, Err(Error::TooLarge { .. })));

            let truncated = Layer { size: None, digest: None, ..good.clone() };
            std::fs::write(dir.path().join("blob"), &blob[..blob.len() - 100]).unwrap();
            assert!(read(&truncated, u64::MAX).is_err());
        }
    }
}
