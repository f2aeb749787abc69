//! Archives of images on their way into a home: in chunks, so that one that is broken off is not taken for
//! a whole one; and in return, progress and what was loaded.
//!
//! ```text
//!   to the home: chunk: [length u32][bytes]     end: [0 u32]                    little endian
//!   from it:     any number of Progress, then Loaded or Failed                  as `wire` has messages
//! ```

use std::io::{self, Read};

use boxlite_rootfs_builder::{Event, Progress};
use serde::{Deserialize, Serialize};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::images::ImageInfo;
use super::remote::OwnedEvent;
use super::remote::wire;
use super::{Error, RemoteError, Result};

/// Bytes of a chunk.
const CHUNK: usize = 64 << 10;

/// Progress that waits to be sent; more is dropped.
const PROGRESS: usize = 64;

/// From the home.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Progress(OwnedEvent),
    /// Last.
    Loaded(Vec<ImageInfo>),
    /// Last.
    Failed(RemoteError),
}

fn broken(source: io::Error) -> Error {
    Error::Copy { path: "the archive of images".into(), source }
}

/// The sender's end: sends all of `input`, and returns what was loaded.
pub(super) async fn send(
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
                Answer::Failed(error) => return Err(Box::new(error).into()),
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

/// The home's end: `load` reads the archive on a thread that may block.
pub(super) fn receive(
    load: impl FnOnce(&mut dyn Read, &dyn Progress) -> Result<Vec<ImageInfo>> + Send + 'static,
) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(4 * CHUNK);
    let (input, output) = tokio::io::split(theirs);
    let (events, told) = mpsc::channel(PROGRESS);
    let mut chunks = Chunks { input, runtime: Handle::current(), left: 0, ended: false };
    let work = super::in_background(move || {
        let loaded = load(&mut chunks, &Events(events));
        (loaded, chunks.input)
    });
    tokio::spawn(async move {
        if let Err(error) = answer(work, told, output).await {
            tracing::debug!("nobody waits for loaded images any more: {error}");
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
        Err(error) => Answer::Failed(RemoteError::from(&error)),
    };
    wire::send(&mut output, &answer).await?;
    // A sender that is still at it must not find the connection broken before it has read the answer.
    tokio::io::copy(&mut input, &mut tokio::io::sink()).await.map(drop)
}

/// Progress to be sent. Nobody to hear of it: nobody wants the images.
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

/// Blocking reads of what the chunks have.
struct Chunks {
    input: ReadHalf<DuplexStream>,
    runtime: Handle,
    /// Bytes of the current chunk that have not been read.
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
                0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was broken off")),
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

    #[tokio::test]
    async fn what_is_sent_arrives_whole_and_progress_comes_back() {
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
    async fn an_early_error_is_heard_by_one_who_sends_for_ever() {
        let stream = receive(|input, _| {
            input.read_exact(&mut [0; 10]).unwrap();
            Err(Error::NoHome)
        });
        let error = send(stream, tokio::io::repeat(7), &Silent).await.unwrap_err();
        assert_eq!(error.to_string(), Error::NoHome.to_string());
    }

    #[tokio::test]
    async fn what_is_broken_off_is_an_error_and_cancels() {
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
            Err(Error::NoHome)
        });
        drop(stream);
        result.await.unwrap();
    }
}
