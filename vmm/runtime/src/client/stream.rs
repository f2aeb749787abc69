//! One stream of a connection: what arrived on it, and the futures that wait for it.
//!
//! It knows no connection. Handles of a stream (`exec`) have both.

use std::io;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use boxlite_proto::frame::Channel;
use boxlite_proto::message::Response;
use boxlite_proto::session::{Chunks, ClientEvent};
use bytes::{Buf, Bytes};
use tokio::io::ReadBuf;
use tokio::sync::Notify;

use super::error::Error;
use super::wire::lock;

/// A stream, shared by the connection and the handles of its user.
#[derive(Debug)]
pub(super) struct Stream {
    id: u32,
    state: Mutex<State>,
    /// The state changed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The command's process ID, once it was started.
    pid: Option<u32>,
    /// The result of the request, once it has ended.
    outcome: Option<Result<Response, Error>>,
    /// The waker of a pending send.
    sender: Option<Waker>,
    outputs: [Incoming; 2],
}

/// Data from the guest.
#[derive(Debug, Default)]
struct Incoming {
    /// Data that was not read yet; at most a window.
    data: Chunks,
    /// The guest sends no more.
    ended: bool,
    /// The reader was dropped.
    abandoned: bool,
    waker: Option<Waker>,
}

/// An attempt to send input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// So many bytes had credit.
    Sent(usize),
    /// The stream takes no input any more.
    Closed,
    /// The connection was lost.
    Lost,
}

impl State {
    fn incoming(&mut self, channel: Channel) -> Option<&mut Incoming> {
        self.outputs.get_mut(channel.output_index()?)
    }

    fn has_stdout(&self) -> bool {
        let [stdout, _] = &self.outputs;
        !stdout.data.is_empty()
    }

    fn wake_all(&mut self) {
        let readers = self.outputs.iter_mut().map(|output| &mut output.waker);
        readers.chain([&mut self.sender]).filter_map(Option::take).for_each(Waker::wake);
    }
}

impl Stream {
    pub(super) fn new(id: u32) -> Self {
        Self { id, state: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Applies an event that does not end the stream.
    pub(super) fn handle(&self, event: ClientEvent<impl Sized>) {
        let mut state = lock(&self.state);
        let waker = match event {
            ClientEvent::Started { pid, .. } => {
                state.pid = Some(pid);
                self.changed.notify_waiters();
                None
            }
            ClientEvent::Output { channel, data, .. } => {
                let Some(incoming) = state.incoming(channel) else { return };
                self.on_output(incoming, data)
            }
            ClientEvent::OutputEnded { channel, .. } => {
                let Some(incoming) = state.incoming(channel) else { return };
                incoming.ended = true;
                incoming.waker.take()
            }
            ClientEvent::InputRoom { .. } | ClientEvent::InputClosed { .. } => state.sender.take(),
            ClientEvent::Hello(_) | ClientEvent::Event(_) | ClientEvent::Ended { .. } => None,
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn on_output(&self, incoming: &mut Incoming, data: Bytes) -> Option<Waker> {
        if incoming.abandoned {
            return None;
        }
        let first = incoming.data.is_empty();
        incoming.data.push(data);
        if first {
            self.changed.notify_waiters();
        }
        incoming.waker.take()
    }

    /// Ends the stream with the agent's answer.
    pub(super) fn answer(&self, response: Response) {
        self.finish(match response {
            Response::Failed(failure) => Err(Error::Failed(failure)),
            response => Ok(response),
        });
    }

    /// Ends the stream, unless it has ended already.
    pub(super) fn finish(&self, outcome: Result<Response, Error>) {
        let mut state = lock(&self.state);
        if state.outcome.is_none() {
            state.outcome = Some(outcome);
            state.wake_all();
            self.changed.notify_waiters();
        }
    }

    /// Waits until the command runs, or has run. Returns its process ID.
    pub(super) async fn started(&self) -> Result<u32, Error> {
        self.until(|state| match (&state.outcome, state.pid) {
            (_, Some(pid)) => Some(Ok(pid)),
            (Some(Err(error)), None) => Some(Err(error.clone())),
            _ => None,
        })
        .await
    }

    /// Waits for standard output, or for the end of the stream.
    pub(super) async fn readable(&self) {
        self.until(|state| (state.outcome.is_some() || state.has_stdout()).then_some(())).await;
    }

    /// Waits for the end of the stream.
    pub(super) async fn over(&self) -> Result<Response, Error> {
        self.until(|state| state.outcome.clone()).await
    }

    /// Whether there is unread standard output.
    pub(super) fn has_output(&self) -> bool {
        lock(&self.state).has_stdout()
    }

    /// The result, if the stream has ended.
    pub(super) fn try_over(&self) -> Option<Result<Response, Error>> {
        lock(&self.state).outcome.clone()
    }

    async fn until<T>(&self, look: impl Fn(&State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(value) = look(&lock(&self.state)) {
                return value;
            }
            changed.await;
        }
    }

    /// Makes an attempt to send `data`; pending if there was no credit.
    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        data: &[u8],
        send: impl FnOnce(&[u8]) -> Attempt,
    ) -> Poll<io::Result<usize>> {
        // Held until the waker is stored: an event that makes room or ends the input takes this lock after that.
        let mut state = lock(&self.state);
        if let Some(Err(error @ Error::Lost(_))) = &state.outcome {
            return Poll::Ready(Err(error.clone().into()));
        }
        match send(data) {
            Attempt::Sent(sent) if sent > 0 || data.is_empty() => Poll::Ready(Ok(sent)),
            Attempt::Closed => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Attempt::Lost if state.outcome.is_some() => {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            }
            // A loss is this stream's outcome next, and wakes the sender then.
            Attempt::Sent(_) | Attempt::Lost => {
                state.sender = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Reads output that arrived. Returns the number of bytes; 0 is the end, or a full buffer.
    pub(super) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        channel: Channel,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.state);
        let outcome = state.outcome.as_ref().map(|outcome| outcome.clone().err());
        let Some(incoming) = state.incoming(channel) else { return Poll::Ready(Ok(0)) };
        if incoming.data.is_empty() {
            return match outcome {
                _ if incoming.ended => Poll::Ready(Ok(0)),
                Some(Some(error)) => Poll::Ready(Err(error.into())),
                Some(None) => Poll::Ready(Ok(0)),
                None => {
                    incoming.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        let before = into.remaining();
        while into.remaining() > 0 && !incoming.data.is_empty() {
            let piece = incoming.data.chunk();
            let n = piece.len().min(into.remaining());
            into.put_slice(&piece[..n]);
            incoming.data.advance(n);
        }
        Poll::Ready(Ok(before - into.remaining()))
    }

    /// Drops this output, read or not, now and later. False if it was dropped already.
    pub(super) fn abandon(&self, channel: Channel) -> bool {
        let mut state = lock(&self.state);
        let Some(incoming) = state.incoming(channel) else { return false };
        incoming.data.clear();
        !std::mem::replace(&mut incoming.abandoned, true)
    }

    /// Drops both outputs later, without closing them for the command.
    pub(super) fn keep_outputs(&self) {
        lock(&self.state).outputs.iter_mut().for_each(|output| output.abandoned = true);
    }
}
