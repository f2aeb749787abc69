//! Sends images in the format of [`saved`](crate::images::saved).

use std::io::{self, Write};

use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::runtime::Handle;

use crate::images::saved::{CHUNK, broken};
use crate::{Error, Result, in_background};

/// Sends the output of `save`.
pub(crate) fn stream(
    save: impl FnOnce(&mut dyn Write) -> Result<()> + Send + 'static,
) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(4 * CHUNK);
    let runtime = Handle::current();
    in_background(move || {
        let mut output = io::BufWriter::with_capacity(CHUNK, Chunks { to: theirs, runtime });
        let saved = save(&mut output).and_then(|()| output.flush().map_err(broken));
        let error = saved.err();
        let (mut chunks, _) = output.into_parts();
        // A reader that closed the stream needs no end.
        let _ = chunks.end(error);
    });
    ours
}

/// A blocking writer that sends each write as a chunk.
struct Chunks {
    to: DuplexStream,
    runtime: Handle,
}

impl Chunks {
    fn end(&mut self, error: Option<Error>) -> io::Result<()> {
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
    use crate::SavedImages;

    async fn collect(stream: DuplexStream) -> Result<Vec<u8>> {
        let mut saved = SavedImages::new(Box::new(stream));
        let mut all = Vec::new();
        while let Some(piece) = saved.next().await? {
            all.extend(piece);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn written_data_arrives_complete() {
        let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let sent = bytes.clone();
        let arrived = collect(stream(move |output| output.write_all(&sent).map_err(broken))).await;
        assert!(arrived.unwrap() == bytes);
        assert!(collect(stream(|_| Ok(()))).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_error_is_sent_and_a_broken_stream_is_an_error() {
        let failing = stream(|output| {
            output.write_all(b"half").map_err(broken)?;
            Err(Error::no_home())
        });
        let error = collect(failing).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (Error::no_home().kind(), Error::no_home().to_string())
        );
        let (ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(&[4, 0, 0, 0, 1, 2]).await.unwrap();
        drop(theirs);
        let error = collect(ours).await.unwrap_err();
        assert!(error.message().contains("broke off"), "{error}");
    }
}
