//! `boxlite-vmm serve`: in the software host, on standard input and output.

use std::sync::Arc;

use boxlite_rootfs_builder::Event;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::mux::{self, Mode, Stream};
use super::wire::{Answer, Request};
use crate::call::Call;
use crate::local::Local;
use crate::stream::progress::OwnedEvent;
use crate::stream::wire;
use crate::{Result, RuntimeOptions};

/// Progress that waits to be told; more is not worth telling.
const PROGRESS: usize = 64;

/// Serves one runtime on standard input and output, until the other end is gone.
pub async fn serve(options: RuntimeOptions) -> Result<()> {
    let io = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
    let local = Local::open_with(options).await;
    serve_on(io, local).await;
    Ok(())
}

async fn serve_on(
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    local: Result<Arc<Local>>,
) {
    // Never opens any itself, and must be there until the end.
    let (_opener, requests) = mux::opener();
    let mut tasks = JoinSet::new();
    let carried = mux::drive(io, Mode::Server, requests, |stream| {
        while tasks.try_join_next().is_some() {}
        let local = local.clone();
        tasks.spawn(async move {
            if let Err(e) = answer(stream, local).await {
                tracing::debug!("a stream ended: {e}");
            }
        });
    });
    if let Err(e) = carried.await {
        tracing::debug!("the connection ended: {e}");
    }
}

async fn answer(mut stream: Stream, local: Result<Arc<Local>>) -> std::io::Result<()> {
    let request = wire::receive(&mut stream).await?;
    let local = match local {
        Ok(local) => local,
        Err(e) => return wire::send(&mut stream, &Answer::Failed(e)).await,
    };
    match request {
        Request::Call(call) => answer_call(stream, local, call).await,
        Request::Open(channel) => match local.open_stream(channel).await {
            Ok(mut channel) => {
                wire::send(&mut stream, &Answer::Opened).await?;
                copy_bidirectional(&mut stream, &mut channel).await.map(drop)
            }
            Err(e) => wire::send(&mut stream, &Answer::Failed(e)).await,
        },
    }
}

async fn answer_call(mut stream: Stream, local: Arc<Local>, call: Call) -> std::io::Result<()> {
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
