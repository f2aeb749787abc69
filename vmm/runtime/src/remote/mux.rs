//! Many streams on one, by yamux.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
pub(super) use yamux::Mode;

/// Streams that may be open at a time, each call that is being answered among them.
const MAX_STREAMS: usize = 4096;

/// A stream of bytes in both directions.
pub(super) type Stream = Compat<yamux::Stream>;

type Request = oneshot::Sender<io::Result<Stream>>;

/// Opens streams on a connection that [`drive`] carries.
#[derive(Clone, Debug)]
pub(super) struct Opener(mpsc::Sender<Request>);

impl Opener {
    pub(super) async fn open(&self) -> io::Result<Stream> {
        let gone = || io::Error::from(io::ErrorKind::ConnectionReset);
        let (sender, stream) = oneshot::channel();
        self.0.send(sender).await.map_err(|_| gone())?;
        stream.await.map_err(|_| gone())?
    }
}

/// What [`drive`] is told.
#[derive(Debug)]
pub(super) struct Requests(mpsc::Receiver<Request>);

pub(super) fn opener() -> (Opener, Requests) {
    let (sender, receiver) = mpsc::channel(16);
    (Opener(sender), Requests(receiver))
}

/// Carries the streams of a connection until it, or the last [`Opener`], is gone, and hands those
/// that the other end opens to `accept`.
pub(super) async fn drive<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    mode: Mode,
    mut requests: Requests,
    mut accept: impl FnMut(Stream),
) -> io::Result<()> {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    config.set_max_connection_receive_window(None);
    let mut connection = yamux::Connection::new(io.compat(), config, mode);
    let mut wanted: Option<Request> = None;
    poll_fn(|cx| {
        loop {
            if wanted.is_none() {
                match requests.0.poll_recv(cx) {
                    Poll::Ready(Some(request)) => wanted = Some(request),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => {}
                }
            }
            if wanted.is_some()
                && let Poll::Ready(opened) = connection.poll_new_outbound(cx)
            {
                let opened = opened.map(FuturesAsyncReadCompatExt::compat);
                if let Some(request) = wanted.take() {
                    // Whoever wanted it may have gone.
                    let _ = request.send(opened.map_err(io::Error::other));
                }
                continue;
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => accept(stream.compat()),
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(io::Error::other(e))),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}
