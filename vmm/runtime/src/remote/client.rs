//! This process's end of a runtime in the software host.

use std::ffi::OsString;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use boxlite_kernel::GuestFiles;
use boxlite_rootfs_builder::Progress;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::wire::{Answer, Listening, Request};
use crate::call::{Call, Channel, Reply};
use crate::client::{self, ExecHandle, FailureKind, SocketStream};
use crate::launcher::SERVE_SUBCOMMAND;
use crate::nested;
use crate::stream::Duplex;
use crate::stream::wire;
use crate::{Error, Home, Result, RuntimeOptions, blocking, local};

/// A runtime in the software host. Dropping it ends that, with the boxes that end with their
/// runtime.
#[derive(Debug)]
pub(crate) struct Remote {
    /// `serve`, which ends when this is dropped.
    serve: ExecHandle,
    /// The name of its socket.
    socket: Vec<u8>,
}

impl Remote {
    /// Starts a runtime in the software host of the home, which is started if need be.
    pub(crate) async fn start(options: RuntimeOptions) -> Result<Self> {
        let debug = options.debug;
        let (home, launcher, host) = blocking(move || {
            let home = Home::open(options.home)?;
            let guest = GuestFiles::locate()?;
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
        if let Some(stderr) = serve.stderr.take() {
            tokio::spawn(pass_on(stderr));
        }
        let Some(stdout) = &mut serve.stdout else {
            return Err(Error::internal("a command without stdio"));
        };
        let Listening { socket } = wire::receive(stdout).await.map_err(lost)?;
        Ok(Self { serve, socket })
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

    async fn open_stream(&self, channel: Channel) -> Result<SocketStream> {
        let mut stream = self.request(Request::Open(channel)).await?;
        match wire::receive(&mut stream).await.map_err(lost)? {
            Answer::Opened => Ok(stream),
            Answer::Failed(e) => Err(e),
            _ => Err(Error::internal("unexpected answer")),
        }
    }

    async fn request(&self, request: Request) -> Result<SocketStream> {
        let agent = self.serve.client();
        let mut stream = agent.connect_socket(&self.socket).map_err(|e| lost(e.into()))?;
        wire::send(&mut stream, &request).await.map_err(lost)?;
        Ok(stream)
    }
}

/// Converts an error of a stream to `serve`.
pub(super) fn lost(error: io::Error) -> Error {
    let source = error.get_ref().and_then(|source| source.downcast_ref::<client::Error>());
    let failure = source.and_then(client::Error::failure).map(|failure| failure.kind);
    let message = match failure {
        // Its agent does not know the request for a stream.
        Some(FailureKind::Unsupported) => {
            "an older release started the software host that runs: stop its boxes with that release, \
             and the software host ends"
                .to_owned()
        }
        // Refused for now: all connections are in use, or the runtime has not begun to accept them.
        Some(_) => format!("cannot reach the runtime in the software host: {error}"),
        None => format!("the runtime in the software host is gone: {error}"),
    };
    Error::soft_host(nested::Error::Ended(message))
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
