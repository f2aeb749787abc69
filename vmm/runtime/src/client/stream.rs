//! One stream as the host sees it: which frames the agent may send when, and what they change.
//!
//! No input or output here: frames go in, and what the user's futures wait for comes out.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use boxlite_proto::credit::{CreditError, ReceiveWindow, SendWindow};
use boxlite_proto::frame::{Channel, Frame, Kind, MAX_DATA};
use boxlite_proto::guest::{
    ExecCounts, FileStat, GuestMetrics, MAX_COMMAND, MAX_LINK, MAX_NAME, Process,
};
use boxlite_proto::message::Response;
use tokio::io::ReadBuf;
use tokio::sync::Notify;

use super::error::{Error, Loss, Violation};
use super::exec::Exit;
use super::wire::{FrameRef, Outbox, lock};

/// The longest message of a failure that is kept; the guest may send megabytes.
pub(super) const MAX_MESSAGE: usize = 4096;

/// What a stream was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A question with one answer: done.
    Call,
    /// A question about how the machine is doing.
    Metrics,
    /// A question about the commands that were asked for.
    ExecCounts,
    /// A question about what runs.
    Processes,
    /// A question about a path.
    Stat,
    /// A command to be started and left alone.
    Detach,
    /// A running command.
    Exec,
    /// A tar on its way to the guest.
    Unpack,
    /// A tar on its way from the guest.
    Pack,
}

impl Purpose {
    /// Whether the guest may grant credit for, and end, what is sent to it.
    fn takes_input(self) -> bool {
        matches!(self, Self::Exec | Self::Unpack)
    }
}

/// How a request came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is done.
    Done,
    /// The command ended.
    Exited(Exit),
    /// The command runs on its own, as this process.
    Detached(u32),
    /// How the machine is doing.
    Metrics(GuestMetrics),
    /// What became of the commands.
    ExecCounts(ExecCounts),
    /// What runs.
    Processes(Vec<Process>),
    /// What is at the path.
    Stat(FileStat),
    /// The tar is unpacked.
    Unpacked {
        /// Entries of the tar.
        entries: u64,
        /// Bytes of file content.
        bytes: u64,
    },
}

/// Where a stream is in its life.
#[derive(Clone, Debug)]
enum Phase {
    Asked,
    Running,
    Over(Result<Outcome, Error>),
}

/// Whether more frames may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Yes.
    More,
    /// That was the last.
    Last,
}

/// A stream, shared by the connection and the handles of its user.
#[derive(Debug)]
pub(super) struct Stream {
    id: u32,
    purpose: Purpose,
    state: Mutex<State>,
    /// The phase changed.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// The command's process ID, once it was started.
    pid: Option<u32>,
    stdin: Outgoing,
    stdout: Incoming,
    stderr: Incoming,
}

/// Data to the guest.
#[derive(Debug, Default)]
struct Outgoing {
    window: SendWindow,
    /// Either side ended it.
    ended: bool,
    waker: Option<Waker>,
}

/// Data from the guest.
#[derive(Debug, Default)]
struct Incoming {
    window: ReceiveWindow,
    /// What arrived and was not read yet; at most a window.
    data: VecDeque<u8>,
    /// No more comes.
    ended: bool,
    /// Nobody reads it.
    abandoned: bool,
    waker: Option<Waker>,
}

impl State {
    fn incoming(&mut self, channel: Channel) -> Option<&mut Incoming> {
        match channel {
            Channel::Stdin => None,
            Channel::Stdout => Some(&mut self.stdout),
            Channel::Stderr => Some(&mut self.stderr),
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    fn outcome(&self) -> Option<Result<Outcome, Error>> {
        match &self.phase {
            Phase::Over(outcome) => Some(outcome.clone()),
            _ => None,
        }
    }

    fn wake_all(&mut self) {
        let wakers = [&mut self.stdin.waker, &mut self.stdout.waker, &mut self.stderr.waker];
        wakers.into_iter().filter_map(Option::take).for_each(Waker::wake);
    }
}

impl Stream {
    pub(super) fn new(id: u32, purpose: Purpose) -> Self {
        let state = State {
            // A tar comes as soon as it is asked for.
            phase: if purpose == Purpose::Pack { Phase::Running } else { Phase::Asked },
            pid: None,
            stdin: Outgoing { ended: !purpose.takes_input(), ..Outgoing::default() },
            stdout: Incoming::default(),
            stderr: Incoming::default(),
        };
        Self { id, purpose, state: Mutex::new(state), changed: Notify::new() }
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Takes a frame of the agent.
    pub(super) fn receive(&self, frame: FrameRef<'_>) -> Result<Next, Loss> {
        match frame.header.kind {
            Kind::Stdout => self.receive_data(Channel::Stdout, frame.body).map(|()| Next::More),
            Kind::Stderr => self.receive_data(Channel::Stderr, frame.body).map(|()| Next::More),
            Kind::End => self.receive_end(frame.to_frame().ended_channel()?).map(|()| Next::More),
            Kind::Credit => {
                let (channel, bytes) = frame.to_frame().granted_credit()?;
                self.receive_credit(channel, bytes).map(|()| Next::More)
            }
            Kind::Response => self.receive_response(frame.decode()?),
            Kind::Hello => Err(self.unexpected("hello").into()),
            Kind::Request => Err(self.unexpected("request").into()),
            Kind::Control => Err(self.unexpected("control").into()),
            Kind::Event => Err(self.unexpected("event").into()),
            Kind::Stdin => Err(self.unexpected("standard input").into()),
        }
    }

    fn receive_data(&self, channel: Channel, data: &[u8]) -> Result<(), Loss> {
        let mut state = lock(&self.state);
        let running = matches!(state.phase, Phase::Running)
            && (self.purpose == Purpose::Exec || channel == Channel::Stdout);
        let Some(incoming) = state.incoming(channel).filter(|i| running && !i.ended) else {
            return Err(self.unexpected("output").into());
        };
        incoming.window.receive(data.len()).map_err(|e| self.overrun(channel, e))?;
        if incoming.abandoned {
            return Ok(());
        }
        let first = incoming.data.is_empty();
        incoming.data.extend(data);
        let waker = incoming.waker.take();
        drop(state);
        if first && self.purpose == Purpose::Pack {
            self.changed.notify_waiters();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    fn receive_end(&self, channel: Channel) -> Result<(), Loss> {
        let mut state = lock(&self.state);
        let waker = match state.incoming(channel) {
            // Whether a tar is whole, only the answer tells.
            Some(_) if self.purpose != Purpose::Exec => {
                return Err(self.unexpected("end").into());
            }
            Some(incoming) => {
                incoming.ended = true;
                incoming.waker.take()
            }
            None if !self.purpose.takes_input() => return Err(self.unexpected("end").into()),
            None => {
                state.stdin.ended = true;
                state.stdin.waker.take()
            }
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    fn receive_credit(&self, channel: Channel, bytes: u32) -> Result<(), Loss> {
        if !self.purpose.takes_input() || channel != Channel::Stdin {
            return Err(self.unexpected("credit").into());
        }
        let mut state = lock(&self.state);
        state.stdin.window.grant(bytes).map_err(|e| self.overrun(channel, e))?;
        let waker = state.stdin.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    fn receive_response(&self, response: Response) -> Result<Next, Loss> {
        let running = matches!(lock(&self.state).phase, Phase::Running);
        let outcome = match (self.purpose, running, response) {
            (_, _, Response::Failed(mut failure)) => {
                truncate(&mut failure.message);
                Err(Error::Failed(failure))
            }
            (Purpose::Exec, false, Response::Started { pid }) => {
                let mut state = lock(&self.state);
                state.phase = Phase::Running;
                state.pid = Some(pid);
                self.changed.notify_waiters();
                return Ok(Next::More);
            }
            (Purpose::Exec, true, Response::Exited(status)) => {
                Ok(Outcome::Exited(Exit { status, out_of_memory: false }))
            }
            (Purpose::Exec, true, Response::ExitedOutOfMemory(status)) => {
                Ok(Outcome::Exited(Exit { status, out_of_memory: true }))
            }
            (Purpose::Detach, _, Response::Detached { pid }) => Ok(Outcome::Detached(pid)),
            (Purpose::Metrics, _, Response::Metrics(metrics)) => Ok(Outcome::Metrics(metrics)),
            (Purpose::ExecCounts, _, Response::ExecCounts(counts)) => {
                Ok(Outcome::ExecCounts(counts))
            }
            (Purpose::Processes, _, Response::Processes(processes)) => {
                let fits = |process: &Process| {
                    process.name.len() <= MAX_NAME && process.command.len() <= MAX_COMMAND
                };
                if !processes.iter().all(fits) {
                    return Err(self.unexpected("length of a process's name or command").into());
                }
                Ok(Outcome::Processes(processes))
            }
            (Purpose::Stat, _, Response::Stat(stat)) => {
                if stat.link_target.len() > MAX_LINK {
                    return Err(self.unexpected("length of a link").into());
                }
                Ok(Outcome::Stat(stat))
            }
            (Purpose::Call | Purpose::Pack, _, Response::Done) => Ok(Outcome::Done),
            (Purpose::Unpack, _, Response::Unpacked { entries, bytes }) => {
                Ok(Outcome::Unpacked { entries, bytes })
            }
            _ => return Err(self.unexpected("response").into()),
        };
        self.finish(outcome);
        Ok(Next::Last)
    }

    /// Ends the stream, unless it is over already.
    pub(super) fn finish(&self, outcome: Result<Outcome, Error>) {
        let mut state = lock(&self.state);
        if !state.is_over() {
            state.phase = Phase::Over(outcome);
            state.wake_all();
            self.changed.notify_waiters();
        }
    }

    fn unexpected(&self, what: &'static str) -> Violation {
        Violation::Unexpected { what, stream: self.id }
    }

    fn overrun(&self, channel: Channel, _: CreditError) -> Violation {
        Violation::Window { stream: self.id, channel }
    }

    /// Waits until the command runs, or has run; its process ID.
    pub(super) async fn started(&self) -> Result<u32, Error> {
        self.until(|state| match (&state.phase, state.pid) {
            (_, Some(pid)) => Some(Ok(pid)),
            (Phase::Over(Err(error)), None) => Some(Err(error.clone())),
            _ => None,
        })
        .await
    }

    /// Waits until there is output to read, or will never be any.
    pub(super) async fn readable(&self) {
        self.until(|state| (state.is_over() || !state.stdout.data.is_empty()).then_some(())).await;
    }

    /// Waits for the end of the stream.
    pub(super) async fn over(&self) -> Result<Outcome, Error> {
        self.until(State::outcome).await
    }

    /// Whether standard output that arrived was not read.
    pub(super) fn has_output(&self) -> bool {
        !lock(&self.state).stdout.data.is_empty()
    }

    /// Whether the stream is over.
    pub(super) fn is_over(&self) -> bool {
        lock(&self.state).is_over()
    }

    /// The outcome, if there is one already.
    pub(super) fn try_over(&self) -> Option<Result<Outcome, Error>> {
        lock(&self.state).outcome()
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

    /// Sends as much of `data` as there is credit for.
    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        data: &[u8],
        outbox: &Outbox,
    ) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.state);
        if let Phase::Over(Err(error @ Error::Lost(_))) = &state.phase {
            return Poll::Ready(Err(error.clone().into()));
        }
        if state.stdin.ended || state.is_over() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = data.len().min(state.stdin.window.available());
        if n == 0 && !data.is_empty() {
            state.stdin.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.stdin.window.spend(n);
        for chunk in data[..n].chunks(MAX_DATA) {
            outbox.push_parts(self.id, Kind::Stdin, chunk);
        }
        Poll::Ready(Ok(n))
    }

    /// Tells the guest that standard input ends here.
    pub(super) fn end_stdin(&self, outbox: &Outbox) {
        let mut state = lock(&self.state);
        if !std::mem::replace(&mut state.stdin.ended, true) && !state.is_over() {
            outbox.push(&Frame::end(self.id, Channel::Stdin));
        }
    }

    /// Reads output that arrived, and grants the guest new credit for it.
    pub(super) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        channel: Channel,
        into: &mut ReadBuf<'_>,
        outbox: &Outbox,
    ) -> Poll<io::Result<()>> {
        let mut state = lock(&self.state);
        let over = state.is_over();
        let loss = match &state.phase {
            Phase::Over(Err(error)) => Some(error.clone()),
            _ => None,
        };
        let Some(incoming) = state.incoming(channel) else { return Poll::Ready(Ok(())) };
        if incoming.data.is_empty() {
            return match loss {
                _ if incoming.ended => Poll::Ready(Ok(())),
                Some(error) => Poll::Ready(Err(error.into())),
                None if over => Poll::Ready(Ok(())),
                None => {
                    incoming.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        let n = incoming.data.len().min(into.remaining());
        let (head, tail) = incoming.data.as_slices();
        let from_head = n.min(head.len());
        into.put_slice(&head[..from_head]);
        into.put_slice(&tail[..n - from_head]);
        incoming.data.drain(..n);
        let credit = incoming.window.take(n).filter(|_| !over && !incoming.ended);
        if let Some(credit) = credit {
            outbox.push(&Frame::credit(self.id, channel, credit));
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the guest that nobody reads this output any more.
    pub(super) fn abandon(&self, channel: Channel, outbox: &Outbox) {
        let mut state = lock(&self.state);
        let over = state.is_over();
        let Some(incoming) = state.incoming(channel) else { return };
        incoming.data = VecDeque::new();
        if !std::mem::replace(&mut incoming.abandoned, true) && !incoming.ended && !over {
            outbox.push(&Frame::end(self.id, channel));
        }
    }

    /// Nobody here reads the outputs any more, and the command is not to know.
    pub(super) fn keep_outputs(&self) {
        let mut state = lock(&self.state);
        (state.stdout.abandoned, state.stderr.abandoned) = (true, true);
    }
}

/// Cuts what a guest wrote for people to a length that people read.
pub(super) fn truncate(message: &mut String) {
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|end| message.is_char_boundary(*end));
        message.truncate(end.unwrap_or(0));
        message.push('…');
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Loss::from(violation).into()
    }
}
