//! One question on its way: to one name server after the other, until one answers.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::message::{self, Question};
use crate::quota::Place;
use crate::sockets::{self, Connect};

/// How long a name server has to answer (resolv.conf(5) waits for five seconds; the guest's own
/// resolver does, too, and must not be slower to learn that it has to wait).
const TIMEOUT: Duration = Duration::from_secs(3);
/// Rounds over all servers.
const ROUNDS: usize = 2;
/// The largest message: its length has two bytes over TCP.
const MAX_MESSAGE: usize = 65_535;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// By a datagram from one address to the other.
    Datagram { guest: SocketAddr, resolver: SocketAddr },
    /// Over a stream: its place in the table, and its number.
    Stream { index: usize, number: u64 },
}

/// A question on its way.
pub(super) struct Query {
    pub(super) client: Client,
    pub(super) question: Question,
    /// As the guest sent it.
    pub(super) message: Vec<u8>,
    /// The number that the name servers see.
    pub(super) id: u16,
    attempt: usize,
    transport: Option<Transport>,
    pub(super) deadline: Instant,
    _place: Place,
}

enum Transport {
    Datagram(OwnedFd),
    Stream {
        socket: OwnedFd,
        server: SocketAddr,
        unsent: Vec<u8>,
        received: Vec<u8>,
        connected: bool,
    },
}

/// What came of looking at the socket.
pub(super) enum Progress {
    /// Nothing yet.
    Waits,
    /// An answer, or what calls itself one.
    Message(Vec<u8>),
    /// This server will not answer.
    Failed,
}

impl Query {
    pub(super) fn new(
        client: Client,
        question: Question,
        message: Vec<u8>,
        place: Place,
        now: Instant,
    ) -> Self {
        let deadline = now + TIMEOUT;
        let (id, attempt, transport) = (0, 0, None);
        Self { client, question, message, id, attempt, transport, deadline, _place: place }
    }

    /// Asks the next server under the number `id`. None if all were asked.
    pub(super) fn ask_next(
        &mut self,
        servers: &[SocketAddr],
        id: u16,
        now: Instant,
    ) -> Option<&OwnedFd> {
        self.transport = None;
        while self.attempt < servers.len() * ROUNDS {
            let server = *servers.get(self.attempt % servers.len())?;
            self.attempt += 1;
            self.id = id;
            self.deadline = now + TIMEOUT;
            self.transport = self.ask(server);
            if self.transport.is_some() {
                break;
            }
        }
        self.socket()
    }

    /// Begins with the first server again, which may be another one now.
    pub(super) fn start_over(&mut self) {
        self.attempt = 0;
    }

    fn ask(&self, server: SocketAddr) -> Option<Transport> {
        let message = message::with_id(&self.message, self.id);
        match self.client {
            Client::Datagram { .. } => {
                let socket = sockets::connect_udp(server).ok()?;
                sockets::send(&socket, &message).ok()??;
                Some(Transport::Datagram(socket))
            }
            Client::Stream { .. } => {
                let (socket, state) = sockets::connect_tcp(server).ok()?;
                let len = u16::try_from(message.len()).ok()?;
                let unsent = [&len.to_be_bytes(), &message[..]].concat();
                let connected = state == Connect::Done;
                Some(Transport::Stream { socket, server, unsent, received: Vec::new(), connected })
            }
        }
    }

    fn socket(&self) -> Option<&OwnedFd> {
        match &self.transport {
            Some(Transport::Datagram(socket) | Transport::Stream { socket, .. }) => Some(socket),
            None => None,
        }
    }

    /// Looks at the socket, which has become ready; `buffer` has room for any message.
    pub(super) fn progress(&mut self, buffer: &mut [u8]) -> Progress {
        match &mut self.transport {
            None => Progress::Waits,
            Some(Transport::Datagram(socket)) => match sockets::receive(socket, buffer) {
                Ok(Some(n)) => Progress::Message(buffer.get(..n).unwrap_or_default().to_vec()),
                Ok(None) => Progress::Waits,
                Err(_) => Progress::Failed,
            },
            Some(stream) => stream.exchange(buffer).unwrap_or(Progress::Failed),
        }
    }
}

impl Transport {
    /// Sends the question and receives the answer, as far as the socket goes.
    fn exchange(&mut self, buffer: &mut [u8]) -> Option<Progress> {
        let Self::Stream { socket, server, unsent, received, connected } = self else {
            return None;
        };
        if !*connected {
            if sockets::connect(socket, *server).ok()? == Connect::Pending {
                return Some(Progress::Waits);
            }
            *connected = true;
        }
        if !unsent.is_empty() {
            let sent = sockets::send(&*socket, unsent).ok()?.unwrap_or(0);
            unsent.drain(..sent);
        }
        while let Some(n) = sockets::receive(&*socket, buffer).ok()? {
            if n == 0 || received.len() > MAX_MESSAGE + 2 {
                return None;
            }
            received.extend(buffer.get(..n)?);
            if let [a, b, rest @ ..] = &received[..]
                && let Some(message) = rest.get(..u16::from_be_bytes([*a, *b]).into())
            {
                return Some(Progress::Message(message.to_vec()));
            }
        }
        Some(Progress::Waits)
    }
}
