//! Transfer of an archive of images into a home, in chunks, so that an aborted transfer is not taken for a complete
//! one. In return, the home sends progress and the loaded images.
//!
//! ```text
//!   to the home: chunk: [length u32][bytes]     end: [0 u32]                    little endian
//!   from it:     any number of Progress, then Loaded or Failed                  as [`wire`](crate::stream::wire) has messages
//! ```

use std::io;

use boxlite_rootfs_builder::Progress;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, WriteHalf};

use crate::image_info::ImageInfo;
use crate::stream::progress::OwnedEvent;
use crate::stream::{broken_off, wire};
use crate::{Error, Result};

/// The largest chunk, in bytes.
pub(crate) const CHUNK: usize = 64 << 10;

/// A message of the home.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Progress(OwnedEvent),
    /// The result; the last message.
    Loaded(Vec<ImageInfo>),
    /// The failure; the last message.
    Failed(Error),
}

pub(crate) fn broken(source: io::Error) -> Error {
    Error::copy("the archive of images")(source)
}

/// Sends all of `input`, and returns the loaded images.
pub(crate) async fn send(
    stream: impl AsyncRead + AsyncWrite,
    input: impl AsyncRead + Unpin,
    progress: &dyn Progress,
) -> Result<Vec<ImageInfo>> {
    let (mut answers, to) = tokio::io::split(stream);
    let sent = async {
        send_chunks(input, to).await?;
        std::future::pending().await
    };
    let answered = async {
        loop {
            match wire::receive(&mut answers).await.map_err(|e| broken(broken_off(e)))? {
                Answer::Progress(event) => event.tell(progress),
                Answer::Loaded(images) => return Ok(images),
                Answer::Failed(error) => return Err(error),
            }
        }
    };
    tokio::select! {
        // The home's error about a bad archive says more than the failed write that follows it.
        biased;
        answer = answered => answer,
        failed = sent => failed,
    }
}

/// Returns only an error of the input. If the home stops receiving, its answer says why.
async fn send_chunks<T>(
    mut input: impl AsyncRead + Unpin,
    mut to: WriteHalf<impl AsyncRead + AsyncWrite>,
) -> Result<T> {
    let mut chunk = vec![0; size_of::<u32>() + CHUNK];
    loop {
        let (length, bytes) = chunk.split_at_mut(size_of::<u32>());
        let count = input.read(bytes).await.map_err(broken)?;
        length.copy_from_slice(&(count as u32).to_le_bytes());
        let used = chunk.get(..size_of::<u32>() + count).unwrap_or_default();
        let written = async {
            to.write_all(used).await?;
            to.flush().await
        };
        if written.await.is_err() || count == 0 {
            return std::future::pending().await;
        }
    }
}
