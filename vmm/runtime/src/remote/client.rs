//! This process's end of a runtime in the software host.

use std::ffi::OsString;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use boxlite_kernel::GuestFiles;
use boxlite_rootfs_builder::Progress;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::task::JoinHandle;

use super::mux::{self, Mode, Opener, Stream};
use super::wire::{Answer, Request};
use crate::call::{Call, Channel, Reply};
use crate::client::ExecHandle;
use crate::launcher::SERVE_SUBCOMMAND;
use crate::nested;
use crate::stream::Duplex;
use crate::stream::wire;
use crate::{Error, Home, Result, RuntimeOptions, blocking, local};

/// A runtime in the software host. Dropping it ends that, with the boxes that end with their
/// runtime.
#[derive(Debug)]
pub(crate) struct Remote {
    opener: Opener,
    /// `serve`, and what carries its streams: both end when they are dropped.
    carrier: JoinHandle<()>,
    _serve: ExecHandle,
}

impl Remote {
    /// Starts a runtime in the software host of the home, which is started if need be.
    pub(crate) async fn start(options: RuntimeOptions) -> Result<Self> {
        let debug = options.debug;
        let (home, launcher, host) = blocking(move || {
            let home = Home::open(options.home)?;
            let guest = GuestFiles::locate().map_err(Error::guest_files)?;
            let launcher = local::find_launcher(options.launcher)?;
            let mut host = nested::Options::new(home.path(), &guest).map_err(Error::soft_host)?;
            host.launcher = Some(launcher.clone());
            host.notice = options.notice;
            Ok((home, launcher, host))
        })
        .await?;
        let mut argv: Vec<OsString> = vec![launcher.into(), "--home".into(), home.path().into()];
        argv.extend(debug.then(|| "--debug".into()));
        argv.push(SERVE_SUBCOMMAND.into());
        let command = nested::NestedCommand::here(argv).map_err(Error::soft_host)?;
        let mut serve = nested::spawn(&host, command).await.map_err(Error::soft_host)?;
        let (Some(stdin), Some(stdout)) = (serve.stdin.take(), serve.stdout.take()) else {
            return Err(Error::internal("a command without stdio"));
        };
        if let Some(stderr) = serve.stderr.take() {
            tokio::spawn(pass_on(stderr));
        }
        let (opener, requests) = mux::opener();
        let carrier = tokio::spawn(async move {
            let io = tokio::io::join(stdout, stdin);
            // Nobody opens streams from there.
            if let Err(e) = mux::drive(io, Mode::Client, requests, drop).await {
                tracing::debug!("the runtime in the software host is gone: {e}");
            }
        });
        Ok(Self { opener, carrier, _serve: serve })
    }

    pub(crate) async fn call(
        self: &Arc<Self>,
        call: Call,
        progress: Arc<dyn Progress>,
    ) -> Result<Reply> {
        let mut stream = self.request(Request::Call(call)).await?;
        loop {
            match wire::receive(&mut stream).await.map_err(lost)? {
                Answer::Progress(event) => event.tell(&*progress),
                Answer::Reply(reply) => return Ok(*reply),
                Answer::Failed(e) => return Err(e),
                Answer::Opened => return Err(Error::internal("unexpected answer")),
            }
        }
    }

    pub(crate) async fn open(self: &Arc<Self>, channel: Channel) -> Result<Box<dyn Duplex>> {
        let stream = self.open_stream(channel).await?;
        Ok(Box::new(Held { stream, _remote: self.clone() }))
    }

    /// The packets of a box. The stream keeps no runtime: it ends with it.
    pub(crate) async fn open_packets(
        &self,
        id: &str,
    ) -> Result<impl AsyncRead + Send + Unpin + 'static + use<>> {
        self.open_stream(Channel::Packets { id: id.to_owned() }).await
    }

    async fn open_stream(&self, channel: Channel) -> Result<Stream> {
        let mut stream = self.request(Request::Open(channel)).await?;
        match wire::receive(&mut stream).await.map_err(lost)? {
            Answer::Opened => Ok(stream),
            Answer::Failed(e) => Err(e),
            _ => Err(Error::internal("unexpected answer")),
        }
    }

    async fn request(&self, request: Request) -> Result<Stream> {
        let mut stream = self.opener.open().await.map_err(lost)?;
        wire::send(&mut stream, &request).await.map_err(lost)?;
        Ok(stream)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

fn lost(error: io::Error) -> Error {
    Error::soft_host(nested::Error::Ended(format!(
        "the runtime in the software host is gone: {error}"
    )))
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
    stream: Stream,
    _remote: Arc<Remote>,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
