//! This process's end of a runtime in the nested host.

use std::ffi::OsString;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use boxlite_rootfs_builder::Progress;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::wire::{Answer, Request};
use crate::call::{Call, Channel, Reply};
use crate::client::SocketStream;
use crate::launcher::SERVE_SUBCOMMAND;
use crate::nested::{self, NestedServer};
use crate::stream::Duplex;
use crate::stream::wire;
use crate::{Error, Home, Result, RuntimeOptions, blocking, local};

/// A runtime in the nested host. Dropping it ends that, with the boxes that end with their
/// runtime.
#[derive(Debug)]
pub(crate) struct Remote {
    /// `serve`, which ends when this is dropped.
    serve: NestedServer,
}

impl Remote {
    /// Starts a runtime in the nested host of the home, which is started if need be.
    pub(crate) async fn start(options: RuntimeOptions) -> Result<Self> {
        let debug = options.debug;
        let (home, launcher, host) = blocking(move || {
            let home = Home::open(options.home)?;
            let launcher = local::find_launcher(options.launcher)?;
            let mut host = nested::Options::locate(home.path())?;
            let inner =
                host.inner.as_ref().map_or_else(|| launcher.clone(), |inner| inner.path.clone());
            host.launcher = Some(launcher);
            host.notice = options.notice;
            Ok((home, inner, host))
        })
        .await?;
        let mut argv: Vec<OsString> = vec![launcher.into(), "--home".into(), home.path().into()];
        argv.extend(debug.then(|| "--debug".into()));
        argv.push(SERVE_SUBCOMMAND.into());
        let command = nested::NestedCommand::new(argv, &host).map_err(Error::soft_host)?;
        let socket = socket_name().map_err(|e| Error::internal(format!("no random name: {e}")))?;
        let serve = NestedServer::start(&host, command, socket).await.map_err(Error::soft_host)?;
        tokio::spawn(pass_on(serve.stderr()));
        Ok(Self { serve })
    }

    pub(crate) async fn call(
        self: &Arc<Self>,
        call: Call,
        progress: Arc<dyn Progress>,
    ) -> Result<Reply> {
        let mut stream = self.request(Request::Call(call)).await?;
        loop {
            match wire::receive(&mut stream).await.map_err(|e| self.lost(e))? {
                Answer::Progress(event) => event.tell(&*progress),
                Answer::Reply(reply) => return Ok(*reply),
                Answer::Failed(e) => return Err(e),
                Answer::Opened => return Err(Error::internal("unexpected answer")),
            }
        }
    }

    pub(crate) async fn open(self: &Arc<Self>, channel: Channel) -> Result<Box<dyn Duplex>> {
        let stream = self.open_stream(channel).await?;
        Ok(Box::new(Held { stream, remote: self.clone() }))
    }

    /// The packets of a box. The stream keeps no runtime: it ends with it.
    pub(crate) async fn open_packets(
        &self,
        id: &str,
    ) -> Result<impl AsyncRead + Send + Unpin + 'static + use<>> {
        self.open_stream(Channel::Packets { id: id.to_owned() }).await
    }

    /// Whether the runtime in the nested host has ended, or cannot be reached any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.serve.is_over()
    }

    async fn open_stream(&self, channel: Channel) -> Result<SocketStream> {
        let mut stream = self.request(Request::Open(channel)).await?;
        match wire::receive(&mut stream).await.map_err(|e| self.lost(e))? {
            Answer::Opened => Ok(stream),
            Answer::Failed(e) => Err(e),
            _ => Err(Error::internal("unexpected answer")),
        }
    }

    /// Sends a request on a stream of its own. The first goes out while `serve` starts.
    async fn request(&self, request: Request) -> Result<SocketStream> {
        let mut stream = self.serve.connect().map_err(|e| self.lost(e))?;
        wire::send(&mut stream, &request).await.map_err(|e| self.lost(e))?;
        Ok(stream)
    }

    /// Converts an error of a stream to `serve`.
    fn lost(&self, error: io::Error) -> Error {
        Error::soft_host(self.serve.explain(error))
    }
}

/// A name for the socket of `serve` that no other process can guess.
fn socket_name() -> io::Result<Vec<u8>> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(format!("boxlite-serve-{:032x}", u128::from_ne_bytes(bytes)).into_bytes())
}

/// Shows what the runtime there has to say to people.
async fn pass_on(mut from: impl AsyncRead + Unpin) {
    let mut stderr = tokio::io::stderr();
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let said = bytes.get(..count).unwrap_or_default();
        if stderr.write_all(said).await.is_err() || stderr.flush().await.is_err() {
            return;
        }
    }
}

/// A channel, which keeps the runtime that it leads to.
struct Held {
    stream: SocketStream,
    remote: Arc<Remote>,
}

impl Held {
    /// The agent that carries the stream is not that of the box, whose errors others explain.
    fn explain<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| self.remote.serve.explain_end(error))
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        Poll::Ready(self.explain(read))
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        Poll::Ready(self.explain(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
