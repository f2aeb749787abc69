//! Multiplexes launchers onto one link to the agent.
//!
//! Each launcher speaks the agent protocol on a connection of its own, with its own stream IDs, which are translated to
//! IDs of the link and back. Data is forwarded under the credit that the two ends grant each other. So the data that
//! waits for a launcher that does not read is bounded by its windows, and does not block the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::credit::WINDOW;
use boxlite_proto::frame::{Channel, Frame, FrameError, HEADER_LEN, Kind, MAX_BODY};
use boxlite_proto::message::{Control, Event, Failure, FailureKind, Hello, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};

use crate::client::wire::{FrameReader, Outbox, lock};

/// Number of bytes waiting for the agent at which launchers have to wait.
const LINK_QUEUE: usize = 1 << 20;

/// Limit of data waiting for a launcher, per stream: two windows, in the smallest frames.
const STREAM_QUEUE: usize = 2 * WINDOW as usize * (HEADER_LEN + 1);

/// Limit of other frames waiting for a launcher.
const CLIENT_QUEUE: usize = 2 * MAX_BODY;

/// Forwards frames between launchers and the agent.
#[derive(Debug)]
pub(super) struct Router {
    /// Frames to the agent.
    link: Outbox,
    routes: Mutex<Routes>,
    /// The state of the link.
    state: watch::Sender<LinkState>,
}

/// The state of the link to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LinkState {
    /// The agent has not sent its hello.
    Booting,
    /// Requests are served.
    Ready { generation: u64 },
    /// The link has ended.
    Down(String),
}

#[derive(Debug, Default)]
struct Routes {
    /// The last allocated stream ID of the link.
    last: u32,
    /// The launchers' streams, by stream ID of the link.
    streams: HashMap<u32, Route>,
}

#[derive(Debug)]
struct Route {
    /// None: the launcher has disconnected, and further frames are dropped.
    client: Option<Arc<Client>>,
    /// The launcher's stream ID.
    stream: u32,
}

/// A connected launcher.
#[derive(Debug, Default)]
struct Client {
    outbox: Outbox,
    /// The link's stream ID for each of the launcher's.
    streams: Mutex<HashMap<u32, u32>>,
    /// The launcher does not read data that it granted credit for.
    overrun: Notify,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            link: Outbox::default(),
            routes: Mutex::default(),
            state: watch::Sender::new(LinkState::Booting),
        }
    }
}

impl Router {
    /// Carries frames between the agent and the launchers until the link ends. Returns why it ended.
    pub(super) async fn run_link<L: AsyncRead + AsyncWrite + Unpin>(
        &self,
        frames: FrameReader<L>,
        generation: u64,
    ) -> String {
        let (frames, writer) = frames.split();
        self.state.send_if_modified(|state| {
            let booting = *state == LinkState::Booting;
            if booting {
                *state = LinkState::Ready { generation };
            }
            booting
        });
        tokio::select! {
            why = self.receive(frames) => why,
            result = self.link.drain(writer) => match result {
                Ok(()) => "the link was closed".to_owned(),
                Err(e) => format!("cannot write to the agent: {e}"),
            },
        }
    }

    async fn receive<R: AsyncRead + Unpin>(&self, mut frames: FrameReader<R>) -> String {
        let mut fatal = None;
        loop {
            match frames.next().await {
                Ok(Some(frame)) if frame.stream == 0 => match frame.decode() {
                    Ok(Event::Fatal { message }) => fatal = Some(message),
                    event => tracing::debug!(?event, "from the agent"),
                },
                Ok(Some(frame)) => self.pass_to_launcher(frame),
                Ok(None) => return fatal.unwrap_or_else(|| "the agent closed the link".to_owned()),
                Err(e) => return fatal.unwrap_or_else(|| format!("the link to the agent: {e}")),
            }
        }
    }

    /// Ends the link for all launchers, including later ones.
    pub(super) fn shut_down(&self, why: String) {
        self.state.send_replace(LinkState::Down(why));
        self.link.close();
    }

    /// Waits until requests are served. Returns the generation of the agent.
    pub(super) async fn ready(&self) -> u64 {
        self.state_that(|state| match state {
            LinkState::Ready { generation } => Some(*generation),
            _ => None,
        })
        .await
    }

    async fn down(&self) -> String {
        self.state_that(|state| match state {
            LinkState::Down(why) => Some(why.clone()),
            _ => None,
        })
        .await
    }

    async fn state_that<T>(&self, look: impl Fn(&LinkState) -> Option<T>) -> T {
        let mut state = self.state.subscribe();
        loop {
            if let Some(value) = look(&state.borrow_and_update()) {
                return value;
            }
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Sends the agent a shutdown request.
    pub(super) fn stop_guest(&self, grace: Duration) {
        let number = {
            let mut routes = lock(&self.routes);
            let number = routes.last.saturating_add(1);
            routes.last = number;
            number
        };
        let grace_ms = grace.as_millis().try_into().unwrap_or(u32::MAX);
        self.link.push(Request::Shutdown { grace_ms }.frame(number));
    }

    /// Forwards a frame of the agent.
    fn pass_to_launcher(&self, frame: Frame) {
        let last =
            frame.kind == Kind::Response && !matches!(frame.decode(), Ok(Response::Started { .. }));
        let link_stream = frame.stream;
        let mut routes = lock(&self.routes);
        let Some(route) = routes.streams.get(&link_stream) else {
            // Credit for standard input may follow the stream's last frame.
            tracing::trace!(stream = link_stream, kind = ?frame.kind, "frame of an ended stream");
            return;
        };
        let (client, stream) = (route.client.clone(), route.stream);
        if last {
            routes.streams.remove(&link_stream);
        }
        drop(routes);
        let Some(client) = client else { return };
        let open = {
            let mut streams = lock(&client.streams);
            let open = streams.len();
            if last {
                streams.remove(&stream);
            }
            open
        };
        client.outbox.push(Frame { stream, ..frame });
        if client.outbox.len() > CLIENT_QUEUE + open * STREAM_QUEUE {
            client.overrun.notify_one();
        }
    }

    /// Serves a launcher until it disconnects, breaks the protocol, or the link ends.
    pub(super) async fn serve<C: AsyncRead + AsyncWrite>(&self, connection: C) {
        let (read, write) = tokio::io::split(connection);
        let client = Arc::new(Client::default());
        let fell_silent = async {
            tokio::select! {
                result = self.receive_from(&client, FrameReader::new(read)) => result,
                () = client.overrun.notified() => {
                    tracing::warn!("a launcher grants more credit than it reads: disconnected");
                    Ok(())
                }
                message = self.down() => {
                    client.outbox.push(Event::Fatal { message }.frame(0));
                    Ok(())
                }
            }
        };
        let receive = async {
            let result = fell_silent.await;
            client.outbox.close();
            self.forget(&client);
            result
        };
        let (received, _) = tokio::join!(receive, client.outbox.drain(write));
        if let Err(error) = received {
            tracing::warn!(%error, "a launcher's connection ended");
        }
    }

    async fn receive_from<R: AsyncRead + Unpin>(
        &self,
        client: &Arc<Client>,
        mut frames: FrameReader<R>,
    ) -> Result<(), FrameError> {
        let Some(first) = frames.next().await? else { return Ok(()) };
        if (first.stream, first.kind) != (0, Kind::Hello) {
            return Err(FrameError::Malformed(first.kind));
        }
        let hello: Hello = first.decode()?;
        tracing::debug!(version = hello.version, "a launcher");
        let mut early = None;
        let generation = loop {
            tokio::select! {
                biased;
                generation = self.ready() => break generation,
                frame = frames.next(), if early.is_none() => match frame? {
                    Some(frame) => early = Some(frame),
                    None => return Ok(()),
                },
            }
        };
        let greeting = Hello { version: PROTOCOL_VERSION, generation, unix_time_ns: 0 };
        client.outbox.push(greeting.frame(0));
        if let Some(frame) = early {
            self.pass_to_agent(client, frame);
        }
        while let Some(frame) = frames.next().await? {
            self.pass_to_agent(client, frame);
            self.link.room(LINK_QUEUE).await;
        }
        Ok(())
    }

    /// Forwards a frame of a launcher.
    fn pass_to_agent(&self, client: &Arc<Client>, frame: Frame) {
        let stream = frame.stream;
        let link_stream = match frame.kind {
            Kind::Request if matches!(frame.decode(), Ok(Request::Shutdown { .. })) => {
                let message = "the software host is shared, and stops by itself".to_owned();
                return refuse(client, stream, FailureKind::Unsupported, message);
            }
            Kind::Request => match self.open(client, stream) {
                Ok(link_stream) => link_stream,
                Err(message) => {
                    return refuse(client, stream, FailureKind::Other, message.to_owned());
                }
            },
            Kind::Control | Kind::Stdin | Kind::End | Kind::Credit => {
                // A stream that is missing has ended meanwhile.
                let Some(link_stream) = lock(&client.streams).get(&stream).copied() else { return };
                link_stream
            }
            kind => return tracing::warn!(?kind, "a launcher sent what only an agent sends"),
        };
        self.link.push(Frame { stream: link_stream, ..frame });
    }

    /// Allocates a stream of the link for a launcher's.
    fn open(&self, client: &Arc<Client>, stream: u32) -> Result<u32, &'static str> {
        let mut routes = lock(&self.routes);
        let mut streams = lock(&client.streams);
        if stream == 0 || streams.contains_key(&stream) {
            return Err("this stream is taken");
        }
        let number = routes.last.checked_add(1).ok_or("the software host has run too long")?;
        routes.last = number;
        routes.streams.insert(number, Route { client: Some(Arc::clone(client)), stream });
        streams.insert(stream, number);
        Ok(number)
    }

    /// Removes a launcher: kills its commands, and drops their further output.
    fn forget(&self, client: &Client) {
        let mut routes = lock(&self.routes);
        for (_, number) in lock(&client.streams).drain() {
            if let Some(route) = routes.streams.get_mut(&number) {
                route.client = None;
                self.link.push(Control::Kill.frame(number));
                self.link.push(Frame::end(number, Channel::Stdout));
                self.link.push(Frame::end(number, Channel::Stderr));
            }
        }
    }
}

fn refuse(client: &Client, stream: u32, kind: FailureKind, message: String) {
    client.outbox.push(Response::Failed(Failure { kind, message }).frame(stream));
}
