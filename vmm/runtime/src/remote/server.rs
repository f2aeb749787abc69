//! `boxlite-vmm serve`: in the nested host, on a socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use boxlite_proto::frame::MAX_DATA;
use boxlite_proto::message::LISTENER;
use boxlite_rootfs_builder::Event;
use rustix::process::geteuid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::wire::{Answer, Request};
use crate::call::Call;
use crate::local::Local;
use crate::stream::progress::OwnedEvent;
use crate::stream::{Duplex, wire};
use crate::sys::inherited_listener;
use crate::{Error, Result, RuntimeOptions};

/// Progress that waits to be told; more is not worth telling.
const PROGRESS: usize = 64;

/// Bytes copied at once: as many as a frame of the link carries.
const CHUNK: usize = MAX_DATA;

/// Pause after an `accept` that failed, for lack of file descriptors: some may be closed meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves one runtime on the listening socket that this process inherited, until standard input ends.
pub async fn serve(options: RuntimeOptions) -> Result<()> {
    // Requests can queue while the runtime opens.
    let listener = inherited_listener(LISTENER).and_then(|listener| {
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    });
    let listener = listener.map_err(Error::no_socket)?;
    let local = Local::open_with(options).await;
    tokio::select! {
        () = serve_on(&listener, local) => {}
        () = ended(tokio::io::stdin()) => {}
    }
    Ok(())
}

/// Waits for the end of a stream that carries no data.
async fn ended(mut stream: impl AsyncRead + Unpin) {
    let mut bytes = [0; 64];
    while let Ok(1..) = stream.read(&mut bytes).await {}
}

pub(super) async fn serve_on(listener: &UnixListener, local: Result<Arc<Local>>) {
    let mut tasks = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) if is_ours(&stream) => stream,
            Ok(_) => {
                tracing::warn!("refused a connection of another user");
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        let local = local.clone();
        tasks.spawn(async move {
            if let Err(e) = answer(stream, local).await {
                tracing::debug!("a stream ended: {e}");
            }
        });
    }
}

/// Whether the peer, which should be the agent, runs as the same user.
fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw())
}

async fn answer(mut stream: UnixStream, local: Result<Arc<Local>>) -> io::Result<()> {
    let request = wire::receive(&mut stream).await?;
    let local = match local {
        Ok(local) => local,
        Err(e) => return wire::send(&mut stream, &Answer::Failed(e)).await,
    };
    match request {
        Request::Call(call) => answer_call(stream, local, call).await,
        Request::Open(channel) => match local.open_stream(channel).await {
            Ok(channel) => {
                wire::send(&mut stream, &Answer::Opened).await?;
                carry(stream, channel).await
            }
            Err(e) => wire::send(&mut stream, &Answer::Failed(e)).await,
        },
    }
}

/// Copies both directions of a channel, each to its own end. A launcher that is gone reads nothing more, and what it wrote
/// before is still delivered.
pub(super) async fn carry(stream: UnixStream, channel: Box<dyn Duplex>) -> io::Result<()> {
    let (from_launcher, to_launcher) = stream.into_split();
    let (from_box, to_box) = tokio::io::split(channel);
    let input = copy(from_launcher, to_box);
    let output = copy(from_box, to_launcher);
    tokio::pin!(input, output);
    tokio::select! {
        // An input that failed has lost its launcher or its box: the channel closes, whatever the output waits for.
        copied = &mut input => {
            copied?;
            output.await
        }
        copied = &mut output => {
            input.await?;
            copied
        }
    }
}

async fn copy(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut from = BufReader::with_capacity(CHUNK, from);
    tokio::io::copy_buf(&mut from, &mut to).await?;
    to.shutdown().await
}

async fn answer_call(mut stream: UnixStream, local: Arc<Local>, call: Call) -> io::Result<()> {
    let (told, mut progress) = mpsc::channel::<OwnedEvent>(PROGRESS);
    let tell = Arc::new(move |event: Event<'_>| {
        if let Some(event) = OwnedEvent::new(event) {
            let _ = told.try_send(event);
        }
    });
    let called = local.call(call, tell);
    tokio::pin!(called);
    let mut byte = [0];
    let result = loop {
        tokio::select! {
            result = &mut called => break result,
            Some(event) = progress.recv() => {
                wire::send(&mut stream, &Answer::Progress(event)).await?;
            }
            // The caller sends no more, and hangs up when it loses interest.
            _ = stream.read(&mut byte) => return Ok(()),
        }
    };
    let answer = match result {
        Ok(reply) => Answer::Reply(Box::new(reply)),
        Err(e) => Answer::Failed(e),
    };
    wire::send(&mut stream, &answer).await?;
    stream.shutdown().await
}
