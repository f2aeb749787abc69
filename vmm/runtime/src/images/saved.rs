//! Transfer of images out of a home: the tar of an OCI layout, in chunks, so that an aborted transfer is not taken
//! for a complete one.
//!
//! ```text
//!   chunk: [length u32][bytes]     end: [0 u32][length u32][JSON: null, or the error]     little endian
//! ```

use std::fmt;
use std::io;

use tokio::io::AsyncReadExt;

use crate::stream::{Duplex, broken_off};
use crate::{Error, Result};

/// The largest chunk, in bytes.
pub(crate) const CHUNK: usize = 64 << 10;

/// The largest error, in bytes.
const MAX_ERROR: u32 = 1 << 20;

/// Images as the tar of an OCI layout.
pub struct SavedImages(Box<dyn Duplex>);

impl SavedImages {
    pub(crate) fn new(stream: Box<dyn Duplex>) -> Self {
        Self(stream)
    }

    /// Returns the next piece of the tar, or `None` at its end. Not cancel safe.
    ///
    /// # Errors
    /// An image is missing or damaged, or the stream broke off. The pieces read so far are not a complete tar.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let length = self.0.read_u32_le().await.map_err(broken)?;
        if length > 0 {
            return self.read(length, CHUNK as u32).await.map(Some);
        }
        let length = self.0.read_u32_le().await.map_err(broken)?;
        let json = self.read(length, MAX_ERROR).await?;
        match serde_json::from_slice::<Option<Error>>(&json) {
            Ok(None) => Ok(None),
            Ok(Some(error)) => Err(error),
            Err(e) => Err(broken(e.into())),
        }
    }

    async fn read(&mut self, length: u32, limit: u32) -> Result<Vec<u8>> {
        if length > limit {
            return Err(broken(io::Error::other("malformed stream")));
        }
        let mut bytes = vec![0; length as usize];
        self.0.read_exact(&mut bytes).await.map_err(broken)?;
        Ok(bytes)
    }
}

impl fmt::Debug for SavedImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SavedImages").finish_non_exhaustive()
    }
}

pub(crate) fn broken(source: io::Error) -> Error {
    Error::copy("the saved images")(broken_off(source))
}
