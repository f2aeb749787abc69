//! Images on their way out of a home: the tar of an OCI layout, in chunks, so that one that is broken
//! off is not taken for a whole one.
//!
//! ```text
//!   chunk: [length u32][bytes]     end: [0 u32][length u32][JSON: null, or the error]     little endian
//! ```

use std::fmt;
use std::io::{self, Write};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::Handle;

use super::call::Duplex;
use super::{Error, RemoteError, Result};

/// Bytes of a chunk.
const CHUNK: usize = 64 << 10;

/// The largest error, in bytes.
const MAX_ERROR: u32 = 1 << 20;

/// Images as the tar of an OCI layout.
pub struct SavedImages(Box<dyn Duplex>);

impl SavedImages {
    pub(super) fn new(stream: Box<dyn Duplex>) -> Self {
        Self(stream)
    }

    /// The next piece of the tar; none at its end. Not cancel safe.
    ///
    /// # Errors
    /// An image is not there or damaged, or the stream broke off: what was read is of no use then.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let length = self.0.read_u32_le().await.map_err(broken)?;
        if length > 0 {
            return self.read(length, CHUNK as u32).await.map(Some);
        }
        let length = self.0.read_u32_le().await.map_err(broken)?;
        let json = self.read(length, MAX_ERROR).await?;
        match serde_json::from_slice::<Option<RemoteError>>(&json) {
            Ok(None) => Ok(None),
            Ok(Some(error)) => Err(Box::new(error).into()),
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

fn broken(source: io::Error) -> Error {
    Error::Copy { path: "the saved images".into(), source }
}

/// Sends what `save` writes.
pub(super) fn stream(
    save: impl FnOnce(&mut dyn Write) -> Result<()> + Send + 'static,
) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(4 * CHUNK);
    let runtime = Handle::current();
    super::in_background(move || {
        let mut output = io::BufWriter::with_capacity(CHUNK, Chunks { to: theirs, runtime });
        let saved = save(&mut output).and_then(|()| output.flush().map_err(broken));
        let error = saved.err().map(|e| RemoteError::from(&e));
        let (mut chunks, _) = output.into_parts();
        // A reader that hung up needs no end.
        let _ = chunks.end(error);
    });
    ours
}

/// Blocking writes, a chunk each.
struct Chunks {
    to: DuplexStream,
    runtime: Handle,
}

impl Chunks {
    fn end(&mut self, error: Option<RemoteError>) -> io::Result<()> {
        let json = serde_json::to_vec(&error)?;
        let end = [&0_u32.to_le_bytes(), &(json.len() as u32).to_le_bytes(), &*json].concat();
        self.runtime.block_on(async {
            self.to.write_all(&end).await?;
            self.to.shutdown().await
        })
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = bytes.get(..CHUNK).unwrap_or(bytes);
        if bytes.is_empty() {
            return Ok(0);
        }
        let chunk = [&(bytes.len() as u32).to_le_bytes(), bytes].concat();
        self.runtime.block_on(self.to.write_all(&chunk))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn collect(stream: DuplexStream) -> Result<Vec<u8>> {
        let mut saved = SavedImages::new(Box::new(stream));
        let mut all = Vec::new();
        while let Some(piece) = saved.next().await? {
            all.extend(piece);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn what_is_written_arrives_whole() {
        let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let sent = bytes.clone();
        let arrived = collect(stream(move |output| output.write_all(&sent).map_err(broken))).await;
        assert!(arrived.unwrap() == bytes);
        assert!(collect(stream(|_| Ok(()))).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_error_is_told_and_a_broken_stream_is_one() {
        let failing = stream(|output| {
            output.write_all(b"half").map_err(broken)?;
            Err(Error::NoHome)
        });
        let error = collect(failing).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (Error::NoHome.kind(), Error::NoHome.to_string())
        );
        let (ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(&[4, 0, 0, 0, 1, 2]).await.unwrap();
        drop(theirs);
        collect(ours).await.unwrap_err();
    }
}
