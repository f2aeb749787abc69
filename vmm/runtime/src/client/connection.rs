//! A connection: its session, and the task that carries its frames.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::frame::FrameError;
use boxlite_proto::message::{Event, Hello, Request};
use boxlite_proto::session::{self, ClientEvent};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::error::{Error, Loss, Violation};
use super::stream::Stream;
use super::wire::{FrameReader, drain, lock};

/// Number of events that are kept for later readers.
const KEPT_EVENTS: usize = 64;

/// The protocol state of a connection.
pub(super) type Session = session::Client<Arc<Stream>>;

/// The state that the connection's task shares with the handles.
///
/// Lock order: a stream's lock before the session's.
#[derive(Debug)]
pub(super) struct Connection {
    state: Mutex<State>,
    /// Wakes the writer: frames wait, or the connection closes.
    filled: Notify,
    events: Mutex<EventLog>,
    happened: Notify,
}

#[derive(Debug)]
struct State {
    session: Session,
    /// The last user was dropped.
    closed: bool,
    lost: Option<Arc<Loss>>,
}

/// The last events. `dropped` earlier ones are not kept any more.
#[derive(Debug, Default)]
struct EventLog {
    kept: VecDeque<Event>,
    dropped: u64,
    closed: bool,
}

impl Connection {
    /// A connection after the exchange of hellos.
    pub(super) fn new(session: Session) -> Self {
        Self {
            state: Mutex::new(State { session, closed: false, lost: None }),
            filled: Notify::new(),
            events: Mutex::default(),
            happened: Notify::new(),
        }
    }

    /// Opens a stream and sends `request` on it.
    pub(super) fn ask(&self, request: &Request) -> Result<Arc<Stream>, Error> {
        self.update(|state| {
            if let Some(loss) = &state.lost {
                return Err(loss.clone().into());
            }
            let id = state.session.request(request, |id| Arc::new(Stream::new(id)))?;
            state.session.tag(id).cloned().ok_or_else(|| Loss::Closed.into())
        })
    }

    /// Calls `act` with the session, and sends the frames that it queues.
    pub(super) fn with_session<R>(&self, act: impl FnOnce(&mut Session) -> R) -> R {
        self.update(|state| act(&mut state.session))
    }

    fn update<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let was_empty = state.session.waiting() == 0;
        let result = act(&mut state);
        if state.lost.is_some() {
            state.session.outbox().clear();
        }
        let filled = was_empty && state.session.waiting() > 0;
        drop(state);
        if filled {
            self.filled.notify_one();
        }
        result
    }

    /// Closes the connection after the waiting frames are sent.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.filled.notify_one();
    }

    /// Carries frames until the connection ends, then ends all of its streams.
    pub(super) async fn run<T: AsyncRead + AsyncWrite + Unpin>(&self, reader: FrameReader<T>) {
        let (reader, writer) = reader.split();
        let receive = self.receive(reader);
        tokio::pin!(receive);
        let take = || {
            let mut state = lock(&self.state);
            (state.session.outbox().take(), state.closed)
        };
        let loss = tokio::select! {
            loss = &mut receive => loss,
            written = drain(writer, &self.filled, take) => match written {
                Ok(()) => Loss::Unused,
                // The agent closed the connection. It may have sent a reason before.
                Err(error) => match receive.await {
                    Loss::Closed => Loss::Write(error),
                    loss => loss,
                },
            },
        };
        self.lose(loss);
    }

    /// Reads frames and delivers them to their streams.
    async fn receive<R: AsyncRead + Unpin>(&self, mut reader: FrameReader<R>) -> Loss {
        let mut fatal = None;
        loop {
            if let Err(violation) = self.deliver(&mut reader, &mut fatal) {
                return violation.into();
            }
            match reader.fill().await {
                Ok(true) => {}
                Ok(false) => return fatal.map_or(Loss::Closed, Loss::Fatal),
                Err(FrameError::Io(_)) if fatal.is_some() => {
                    return fatal.map_or(Loss::Closed, Loss::Fatal);
                }
                Err(error) => return error.into(),
            }
        }
    }

    /// Delivers the frames that have been read.
    fn deliver<R>(
        &self,
        reader: &mut FrameReader<R>,
        fatal: &mut Option<String>,
    ) -> Result<(), Violation> {
        loop {
            let (event, stream) = {
                let mut state = lock(&self.state);
                let Some(event) = state.session.receive(&mut reader.input)? else { return Ok(()) };
                let stream = event.stream().and_then(|id| state.session.tag(id).cloned());
                (event, stream)
            };
            match (event, stream) {
                (ClientEvent::Event(event), _) => {
                    if let Event::Fatal { message } = &event {
                        *fatal = Some(message.clone());
                    }
                    self.log(event);
                }
                (ClientEvent::Ended { tag, response, .. }, _) => tag.answer(response),
                (event, Some(stream)) => stream.handle(event),
                (_, None) => {}
            }
        }
    }

    fn log(&self, event: Event) {
        let mut events = lock(&self.events);
        if events.kept.len() == KEPT_EVENTS {
            events.kept.pop_front();
            events.dropped += 1;
        }
        events.kept.push_back(event);
        self.happened.notify_waiters();
    }

    /// Waits for event number `next`, or the first later one that is still kept. None once the connection is lost and
    /// all events were returned.
    pub(super) async fn event(&self, next: &mut u64) -> Option<Event> {
        loop {
            let happened = self.happened.notified();
            tokio::pin!(happened);
            happened.as_mut().enable();
            {
                let events = lock(&self.events);
                let index = next.saturating_sub(events.dropped);
                if let Some(event) = usize::try_from(index).ok().and_then(|i| events.kept.get(i)) {
                    *next = events.dropped + index + 1;
                    return Some(event.clone());
                }
                if events.closed {
                    return None;
                }
            }
            happened.await;
        }
    }

    /// Whether the connection has ended.
    pub(super) fn is_lost(&self) -> bool {
        lock(&self.state).lost.is_some()
    }

    fn lose(&self, loss: Loss) {
        tracing::debug!(%loss, "connection to the agent ended");
        let loss = Arc::new(loss);
        let open = {
            let mut state = lock(&self.state);
            state.lost = Some(Arc::clone(&loss));
            state.session.outbox().clear();
            state.session.end_all()
        };
        for stream in open {
            stream.finish(Err(loss.clone().into()));
        }
        lock(&self.events).closed = true;
        self.happened.notify_waiters();
    }
}

/// Exchanges hellos. `generation` is the generation of the guest that the caller expects.
pub(crate) async fn greet<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    generation: u64,
) -> Result<FrameReader<T>, Loss> {
    open::<T, ()>(io, generation).await.map(|(reader, _)| reader)
}

/// Like [`greet`]; also returns the session.
pub(super) async fn open<T: AsyncRead + AsyncWrite + Unpin, S>(
    io: T,
    generation: u64,
) -> Result<(FrameReader<T>, session::Client<S>), Loss> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_time_ns = now.as_nanos().try_into().unwrap_or(u64::MAX);
    let mut session =
        session::Client::new(&Hello { version: PROTOCOL_VERSION, generation, unix_time_ns });
    let mut reader = FrameReader::new(io);
    let mut hello = session.outbox().take();
    let io = reader.io_mut();
    let sent = async {
        io.write_all_buf(&mut hello).await?;
        io.flush().await
    };
    let sent = sent.await.map_err(Loss::Write);
    // A peer that closed the connection may have sent a reason before.
    let answer = async {
        let frame = reader.next().await?.ok_or(Loss::Closed)?;
        match session.receive_frame(frame)? {
            Some(ClientEvent::Hello(hello)) => Ok(hello),
            Some(ClientEvent::Event(Event::Fatal { message })) => Err(Loss::Fatal(message)),
            _ => Err(Violation::NoHello("another frame").into()),
        }
    };
    let theirs = match (answer.await, sent) {
        (Err(fatal @ Loss::Fatal(_)), _) => return Err(fatal),
        (_, Err(unsent)) => return Err(unsent),
        (answer, Ok(())) => answer?,
    };
    if theirs.generation != generation {
        return Err(Loss::Generation { asked: generation, theirs: theirs.generation });
    }
    Ok((reader, session))
}
