//! One query: sent to one name server after the other, until one answers.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::message::{self, Question};
use crate::quota::Permit;
use crate::sockets::{self, Connect};

/// Timeout of one name server. Less than the five seconds of resolv.conf(5), which is the timeout of the
/// guest's resolver, so that the second server is asked before the guest gives up.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The number of rounds over all servers.
const ROUNDS: usize = 2;
/// The largest message: over TCP, its length has two bytes.
const MAX_MESSAGE: usize = 65_535;

/// The sender of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// A datagram from one address to the other.
    Datagram { guest: SocketAddr, resolver: SocketAddr },
    /// A stream: its index in the table, and its number.
    Stream { index: usize, number: u64 },
}

/// A query that is not answered yet.
pub(super) struct Query {
    pub(super) client: Client,
    pub(super) question: Question,
    /// The message of the guest.
    pub(super) message: Vec<u8>,
    /// The ID of the message to the name server.
    pub(super) id: u16,
    attempt: usize,
    transport: Option<Transport>,
    pub(super) deadline: Instant,
    _permit: Permit,
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

/// The state of a query after its socket was ready.
pub(super) enum Progress {
    /// There is no answer yet.
    Pending,
    /// A message, which is not checked yet.
    Message(Vec<u8>),
    /// The server does not answer.
    Failed,
}

impl Query {
    pub(super) fn new(
        client: Client,
        question: Question,
        message: Vec<u8>,
        permit: Permit,
        now: Instant,
    ) -> Self {
        let deadline = now + TIMEOUT;
        let (id, attempt, transport) = (0, 0, None);
        Self { client, question, message, id, attempt, transport, deadline, _permit: permit }
    }

    /// Sends the query to the next server under this ID. None if all were asked.
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

    /// Begins with the first server again, after the configuration changed.
    pub(super) fn restart(&mut self) {
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

    /// Makes progress after the socket became ready. `buffer` has room for any message.
    pub(super) fn progress(&mut self, buffer: &mut [u8]) -> Progress {
        match &mut self.transport {
            None => Progress::Pending,
            Some(Transport::Datagram(socket)) => match sockets::receive(socket, buffer) {
                Ok(Some(n)) => Progress::Message(buffer.get(..n).unwrap_or_default().to_vec()),
                Ok(None) => Progress::Pending,
                Err(_) => Progress::Failed,
            },
            Some(stream) => stream.exchange(buffer).unwrap_or(Progress::Failed),
        }
    }
}

impl Transport {
    /// Sends the query and receives the answer, as far as possible now.
    fn exchange(&mut self, buffer: &mut [u8]) -> Option<Progress> {
        let Self::Stream { socket, server, unsent, received, connected } = self else {
            return None;
        };
        if !*connected {
            if sockets::connect(socket, *server).ok()? == Connect::Pending {
                return Some(Progress::Pending);
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
        Some(Progress::Pending)
    }
}
