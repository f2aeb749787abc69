//! Receives an archive of images in the format of [`loaded`](crate::images::loaded).

use std::io::{self, Read};

use boxlite_rootfs_builder::{Event, Progress};
use tokio::io::{AsyncReadExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::images::loaded::{Answer, CHUNK};
use crate::stream::progress::OwnedEvent;
use crate::stream::wire;
use crate::{ImageInfo, Result, in_background};

/// Number of progress events that may wait to be sent. More are dropped.
const PROGRESS: usize = 64;

/// The home's end of the transfer. `load` reads the archive on a blocking thread.
pub(crate) fn receive(
    load: impl FnOnce(&mut dyn Read, &dyn Progress) -> Result<Vec<ImageInfo>> + Send + 'static,
) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(4 * CHUNK);
    let (input, output) = tokio::io::split(theirs);
    let (events, told) = mpsc::channel(PROGRESS);
    let mut chunks = Chunks { input, runtime: Handle::current(), left: 0, ended: false };
    let work = in_background(move || {
        let loaded = load(&mut chunks, &Events(events));
        (loaded, chunks.input)
    });
    tokio::spawn(async move {
        if let Err(error) = answer(work, told, output).await {
            tracing::debug!("cannot send the answer about loaded images: {error}");
        }
    });
    ours
}

type Work = tokio::task::JoinHandle<(Result<Vec<ImageInfo>>, ReadHalf<DuplexStream>)>;

async fn answer(
    work: Work,
    mut told: mpsc::Receiver<OwnedEvent>,
    mut output: WriteHalf<DuplexStream>,
) -> io::Result<()> {
    while let Some(event) = told.recv().await {
        wire::send(&mut output, &Answer::Progress(event)).await?;
    }
    let (loaded, mut input) = work.await.map_err(io::Error::other)?;
    let answer = match loaded {
        Ok(images) => Answer::Loaded(images),
        Err(error) => Answer::Failed(error),
    };
    wire::send(&mut output, &answer).await?;
    // Read on, so that a sender does not see a broken connection before it has read the answer.
    tokio::io::copy(&mut input, &mut tokio::io::sink()).await.map(drop)
}

/// Sends progress. If the receiver has gone, the caller does not want the images any more.
struct Events(mpsc::Sender<OwnedEvent>);

impl Progress for Events {
    fn report(&self, event: Event<'_>) {
        if let Some(event) = OwnedEvent::new(event) {
            let _ = self.0.try_send(event);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.0.is_closed()
    }
}

/// A blocking reader of the content of chunks.
struct Chunks {
    input: ReadHalf<DuplexStream>,
    runtime: Handle,
    /// Unread bytes of the current chunk.
    left: usize,
    ended: bool,
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Self { input, runtime, left, ended } = self;
        runtime.block_on(async {
            if *left == 0 && !*ended {
                *left = input.read_u32_le().await? as usize;
                *ended = *left == 0;
            }
            let wanted = buf.len().min(*left);
            if wanted == 0 {
                return Ok(0);
            }
            let count = input.read(buf.get_mut(..wanted).unwrap_or_default()).await?;
            *left -= count;
            match count {
                0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the transfer was aborted")),
                count => Ok(count),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use boxlite_rootfs_builder::Silent;

    use super::*;
    use crate::Error;
    use tokio::io::AsyncWriteExt;

    use crate::images::loaded::{broken, send};

    #[tokio::test]
    async fn the_archive_arrives_complete_and_progress_comes_back() {
        let bytes: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let expected = bytes.clone();
        let stream = receive(move |input, progress| {
            let mut arrived = Vec::new();
            input.read_to_end(&mut arrived).unwrap();
            progress.report(Event::Warning("x"));
            assert!(arrived == expected && !progress.is_cancelled());
            Ok(Vec::new())
        });
        let heard = Mutex::new(String::new());
        let progress = |event: Event<'_>| *heard.lock().unwrap() += &format!("{event:?}");
        assert_eq!(send(stream, &bytes[..], &progress).await.unwrap(), []);
        assert_eq!(*heard.lock().unwrap(), "Warning(\"x\")");
    }

    #[tokio::test]
    async fn an_early_error_reaches_an_endless_sender() {
        let stream = receive(|input, _| {
            input.read_exact(&mut [0; 10]).unwrap();
            Err(Error::no_home())
        });
        let error = send(stream, tokio::io::repeat(7), &Silent).await.unwrap_err();
        assert_eq!(error.to_string(), Error::no_home().to_string());
    }

    #[tokio::test]
    async fn an_aborted_transfer_is_an_error_and_cancels() {
        let (done, result) = tokio::sync::oneshot::channel();
        let mut stream = receive(|input, _| {
            let error = input.read_to_end(&mut Vec::new()).unwrap_err();
            let _ = done.send(error.kind());
            Err(broken(error))
        });
        stream.write_all(&[4, 0, 0, 0, 1, 2]).await.unwrap();
        drop(stream);
        assert_eq!(result.await.unwrap(), io::ErrorKind::UnexpectedEof);

        let (done, result) = tokio::sync::oneshot::channel();
        let stream = receive(|_, progress| {
            while !progress.is_cancelled() {
                progress.report(Event::Syncing);
                std::thread::yield_now();
            }
            let _ = done.send(());
            Err(Error::no_home())
        });
        drop(stream);
        result.await.unwrap();
    }
}
