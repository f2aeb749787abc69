//! Archives of images on their way into a home: in chunks, so that one that is broken off is not taken for
//! a whole one; and in return, progress and what was loaded.
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
use crate::stream::wire;
use crate::{Error, Result};

/// Bytes of a chunk.
pub(crate) const CHUNK: usize = 64 << 10;

/// From the home.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Progress(OwnedEvent),
    /// Last.
    Loaded(Vec<ImageInfo>),
    /// Last.
    Failed(Error),
}

pub(crate) fn broken(source: io::Error) -> Error {
    Error::copy("the archive of images")(source)
}

/// The sender's end: sends all of `input`, and returns what was loaded.
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
            match wire::receive(&mut answers).await.map_err(broken)? {
                Answer::Progress(event) => event.tell(progress),
                Answer::Loaded(images) => return Ok(images),
                Answer::Failed(error) => return Err(error),
            }
        }
    };
    tokio::select! {
        // What the home says of a broken archive says more than that it takes no more of it.
        biased;
        answer = answered => answer,
        failed = sent => failed,
    }
}

/// Ends in an error only where the input does: the home says itself why it takes no more.
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
