//! One connection: the streams on it, and the task that carries their frames.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::frame::{FrameError, Kind, MAX_BODY};
use boxlite_proto::message::{Event, Hello, Request};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::error::{Error, Loss, Violation};
use super::stream::{Next, Purpose, Stream, truncate};
use super::wire::{FrameReader, Outbox, lock};

/// Events that are kept for those who have not asked yet.
const KEPT_EVENTS: usize = 64;

/// What the task and the handles share.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// Frames to the agent.
    pub(super) outbox: Outbox,
    streams: Mutex<Streams>,
    events: Mutex<EventLog>,
    happened: Notify,
}

#[derive(Debug, Default)]
struct Streams {
    /// The last number given out.
    last: u32,
    open: HashMap<u32, Arc<Stream>>,
    lost: Option<Arc<Loss>>,
}

/// The last events, of which `dropped` earlier ones have been forgotten.
#[derive(Debug, Default)]
struct EventLog {
    kept: VecDeque<Event>,
    dropped: u64,
    closed: bool,
}

impl Connection {
    /// Opens a stream and asks `request` on it.
    pub(super) fn ask(&self, purpose: Purpose, request: &Request) -> Result<Arc<Stream>, Error> {
        let mut streams = lock(&self.streams);
        if let Some(loss) = &streams.lost {
            return Err(loss.clone().into());
        }
        let id = streams.last.checked_add(1).ok_or(Loss::Exhausted)?;
        let frame = request.frame(id);
        if frame.body.len() > MAX_BODY {
            return Err(Error::TooLarge { size: frame.body.len(), max: MAX_BODY });
        }
        let stream = Arc::new(Stream::new(id, purpose));
        streams.last = id;
        streams.open.insert(id, Arc::clone(&stream));
        self.outbox.push(&frame);
        Ok(stream)
    }

    /// Carries frames until the connection ends, and then ends everything that used it.
    pub(super) async fn run<T: AsyncRead + AsyncWrite + Unpin>(&self, reader: FrameReader<T>) {
        let (reader, writer) = reader.split();
        let receive = self.receive(reader);
        tokio::pin!(receive);
        let loss = tokio::select! {
            loss = &mut receive => loss,
            written = self.outbox.drain(writer) => match written {
                Ok(()) => Loss::Unused,
                // The agent hung up. Why, it may have said before.
                Err(error) => match receive.await {
                    Loss::Closed => Loss::Write(error),
                    loss => loss,
                },
            },
        };
        self.lose(loss);
    }

    /// Hands incoming frames to their streams.
    async fn receive<R: AsyncRead + Unpin>(&self, mut reader: FrameReader<R>) -> Loss {
        let mut fatal = None;
        loop {
            match self.receive_one(&mut reader, &mut fatal).await {
                Ok(true) => {}
                Ok(false) => return fatal.map_or(Loss::Closed, Loss::Fatal),
                Err(Loss::Frame(FrameError::Io(_))) if fatal.is_some() => {
                    return fatal.map_or(Loss::Closed, Loss::Fatal);
                }
                Err(loss) => return loss,
            }
        }
    }

    async fn receive_one<R: AsyncRead + Unpin>(
        &self,
        reader: &mut FrameReader<R>,
        fatal: &mut Option<String>,
    ) -> Result<bool, Loss> {
        let Some(frame) = reader.next().await? else { return Ok(false) };
        let id = frame.header.stream;
        if id == 0 {
            if frame.header.kind != Kind::Event {
                return Err(Violation::Unexpected { what: "frame", stream: 0 }.into());
            }
            let mut event: Event = frame.decode()?;
            if let Event::Fatal { message } = &mut event {
                truncate(message);
                *fatal = Some(message.clone());
            }
            self.log(event);
            return Ok(true);
        }
        let (stream, was_open) = {
            let streams = lock(&self.streams);
            (streams.open.get(&id).cloned(), id <= streams.last)
        };
        match stream {
            Some(stream) => {
                if stream.receive(frame)? == Next::Last {
                    lock(&self.streams).open.remove(&id);
                }
            }
            // The agent's reader of standard input may be a little behind its own last word.
            None if was_open && matches!(frame.header.kind, Kind::Credit | Kind::End) => {}
            None if was_open => {
                return Err(
                    Violation::Unexpected { what: "frame after the last", stream: id }.into()
                );
            }
            None => return Err(Violation::UnknownStream(id).into()),
        }
        Ok(true)
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

    /// The event number `next`, or the first later one that is still kept; none when the
    /// connection is gone and no more can come.
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

    /// Whether it has ended.
    pub(super) fn is_lost(&self) -> bool {
        lock(&self.streams).lost.is_some()
    }

    fn lose(&self, loss: Loss) {
        tracing::debug!(%loss, "connection to the agent ended");
        let loss = Arc::new(loss);
        self.outbox.close();
        let open = {
            let mut streams = lock(&self.streams);
            streams.lost = Some(Arc::clone(&loss));
            std::mem::take(&mut streams.open)
        };
        for stream in open.into_values() {
            stream.finish(Err(loss.clone().into()));
        }
        lock(&self.events).closed = true;
        self.happened.notify_waiters();
    }
}

/// Exchanges hellos; `generation` is the life of the guest that the caller means.
pub(crate) async fn greet<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    generation: u64,
) -> Result<FrameReader<T>, Loss> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let hello = Hello {
        version: PROTOCOL_VERSION,
        generation,
        unix_time_ns: now.as_nanos().try_into().unwrap_or(u64::MAX),
    };
    let mut reader = FrameReader::new(io);
    let io = reader.io_mut();
    let sent = async {
        io.write_all(&hello.frame(0).to_bytes()).await?;
        io.flush().await
    };
    let sent = sent.await.map_err(Loss::Write);
    // A peer that hung up may have said why.
    let answer = async {
        let frame = reader.next().await?.ok_or(Loss::Closed)?;
        match (frame.header.stream, frame.header.kind) {
            (0, Kind::Hello) => Ok(frame.decode::<Hello>()?),
            (0, Kind::Event) => match frame.decode()? {
                Event::Fatal { mut message } => {
                    truncate(&mut message);
                    Err(Loss::Fatal(message))
                }
                _ => Err(Violation::NoHello("an event").into()),
            },
            _ => Err(Violation::NoHello("another frame").into()),
        }
    };
    let theirs = match (answer.await, sent) {
        (Err(fatal @ Loss::Fatal(_)), _) => return Err(fatal),
        (_, Err(unsent)) => return Err(unsent),
        (answer, Ok(())) => answer?,
    };
    if theirs.version != PROTOCOL_VERSION {
        return Err(Loss::Version { ours: PROTOCOL_VERSION, theirs: theirs.version });
    }
    if theirs.generation != generation {
        return Err(Loss::Generation { asked: generation, theirs: theirs.generation });
    }
    Ok(reader)
}
