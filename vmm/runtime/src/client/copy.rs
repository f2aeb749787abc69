//! Transfer of tars to and from a guest.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use boxlite_proto::frame::MAX_DATA;
use boxlite_proto::guest::{CopyIn, CopyOut};
use boxlite_proto::message::{Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

use super::error::Error;
use super::exec::{ExecOutput, Running};
use super::{AgentClient, Result};

/// The result of unpacking a tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Number of entries in the tar.
    pub entries: u64,
    /// Bytes of file content written.
    pub bytes: u64,
}

/// A reader of a tar that a guest creates. It ends only after a complete tar. If the tar breaks off, reading fails with
/// an I/O error that carries an [`Error`].
///
/// The guest waits while nobody reads. Dropping the reader before the end cancels the copy.
#[derive(Debug)]
pub struct Archive {
    data: ExecOutput,
    running: Running,
}

impl AgentClient {
    /// Sends an uncompressed layer, which the guest unpacks onto its disk.
    pub async fn unpack_layer(&self, tar: impl AsyncRead + Unpin) -> Result<Unpacked> {
        self.send_tar(&Request::UnpackLayer, tar).await
    }

    /// Sends an uncompressed tar, which the guest unpacks below a directory. Dropping the future cancels that, possibly
    /// within an entry; entries unpacked so far stay.
    ///
    /// # Errors
    /// [`Error::Source`] if `tar` cannot be read; a [`Failure`](boxlite_proto::message::Failure) of
    /// the kind `NoSuchPath` or `NotADirectory` for the directory, `BadArchive` for an entry,
    /// `DiskFull`.
    pub async fn copy_in(&self, to: CopyIn, tar: impl AsyncRead + Unpin) -> Result<Unpacked> {
        self.send_tar(&Request::CopyIn(to), tar).await
    }

    /// Requests a tar of a file or a tree of the guest. Returns when data arrives. The tar is in the PAX format, with
    /// extended attributes as `SCHILY.xattr.*` and sparse files in GNU's version 1.0.
    ///
    /// # Errors
    /// A [`Failure`](boxlite_proto::message::Failure) of the kind `NoSuchPath` if there is no such file.
    pub async fn copy_out(&self, from: CopyOut) -> Result<Archive> {
        let running = self.open(&Request::CopyOut(from))?;
        let data = running.receiver().await?;
        Ok(Archive { data, running })
    }

    async fn send_tar(
        &self,
        request: &Request,
        mut tar: impl AsyncRead + Unpin,
    ) -> Result<Unpacked> {
        let running = self.open(request)?;
        let send = async {
            let mut sender = running.sender();
            // Dropped before the sender, so that an incomplete tar does not look complete.
            let mut unfinished = KillOnDrop(Some(&running));
            let mut buffer = Vec::with_capacity(MAX_DATA);
            loop {
                buffer.clear();
                let read = tar.read_buf(&mut buffer).await;
                if read.map_err(|error| Error::Source(Arc::new(error)))? == 0 {
                    break;
                }
                // The guest stopped reading: its answer says why.
                if sender.write_all(&buffer).await.is_err() {
                    break;
                }
            }
            unfinished.0 = None;
            Ok(())
        };
        let (_, outcome) = tokio::try_join!(send, running.over())?;
        match outcome {
            Response::Unpacked { entries, bytes } => Ok(Unpacked { entries, bytes }),
            other => unreachable!("a tar's stream accepts no {other:?}"),
        }
    }
}

impl Archive {
    /// Discards the rest of the tar and waits for the guest to finish.
    ///
    /// # Errors
    /// The error that broke the tar off.
    pub async fn finish(mut self) -> Result<()> {
        let mut dropped = Vec::with_capacity(MAX_DATA);
        while self.data.read_buf(&mut dropped).await.is_ok_and(|n| n > 0) {
            dropped.clear();
        }
        self.running.over().await.map(drop)
    }
}

impl AsyncRead for Archive {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().data).poll_read(cx, into)
    }
}

/// Kills the command on drop, if it still runs.
struct KillOnDrop<'a>(Option<&'a Running>);

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(running) = self.0 {
            running.kill();
        }
    }
}
