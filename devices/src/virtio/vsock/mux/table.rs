//! The entries of the connection table, and their indexes.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::net::UnixStream;

use crate::virtio::vsock::connection::{Connection, ConnectionId};
use crate::virtio::vsock::rx::RxQueue;
use crate::virtio::vsock::stream::{HostStream, Received};
use crate::virtio::vsock::{FIRST_TOKEN, MAX_CONNECTIONS, Token};
use crate::{GuestMemory, Interest};

use super::{BYTE_BUDGET, Sent};

/// Ports of the host's end of connections that the host requested. Servers have lower ports.
const FIRST_LOCAL_PORT: u32 = 1 << 30;
const LAST_LOCAL_PORT: u32 = (1 << 31) - 1;

/// A connection and its stream.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) connection: Connection,
    pub(super) host: HostStream,
    /// What the event loop watches the stream for, if it is watched.
    pub(super) watched: Option<Interest>,
}

impl Entry {
    pub(super) fn new(connection: Connection, host: HostStream, watched: Option<Interest>) -> Self {
        Self { connection, host, watched }
    }

    /// The host side took or discarded `count` bytes.
    pub(super) fn forwarded(&mut self, count: usize) {
        // It holds no more than the credit window.
        self.connection.forwarded(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// The events of the stream that matter now.
    pub(super) fn interest(&self) -> Interest {
        let read = !self.host.is_readable() && self.connection.takes_data();
        match (read, self.host.has_backlog()) {
            (true, true) => Interest::ReadWrite,
            (true, false) => Interest::Read,
            (false, true) => Interest::Write,
            (false, false) => Interest::Pause,
        }
    }

    /// Moves up to `limit` bytes, at least one, from the stream into buffers of the guest.
    pub(super) fn send_data(
        &mut self,
        limit: usize,
        guest_cid: u64,
        rx: &mut RxQueue,
        memory: &GuestMemory,
    ) -> (Sent, Received) {
        let buffers = rx.pop_room(memory, limit);
        if buffers.is_empty() {
            return (Sent::Starved, Received::Nothing);
        }
        let mut room = limit;
        let shares: Vec<_> = buffers
            .iter()
            .map(|buffer| {
                let share = buffer.room().min(room);
                room -= share;
                (buffer, share)
            })
            .collect();
        let pieces = shares.iter().flat_map(|(buffer, share)| buffer.payload(*share));
        let received = self.host.receive(pieces, limit - room);
        let mut left = if let Received::Data(count) = received { count } else { 0 };
        let mut unused = buffers.len();
        for (buffer, share) in shares {
            let len = left.min(share);
            if len == 0 {
                break;
            }
            let mut header = self.connection.data(u32::try_from(len).unwrap_or(u32::MAX));
            header.dst_cid = guest_cid.into();
            rx.send(memory, buffer, &header, len);
            left -= len;
            unused -= 1;
        }
        rx.put_back(unused);
        (Sent::Some, received)
    }
}

/// The entries, by the token of their streams on the event loop.
#[derive(Debug)]
pub(super) struct Table {
    entries: HashMap<Token, Entry>,
    /// The entries that the guest knows by their ports.
    by_id: HashMap<ConnectionId, Token>,
    /// The entries that have something to send to the guest.
    ready: BTreeSet<Token>,
    /// The entry whose turn it is to send; turns go round-robin.
    sender: Token,
    /// Bytes left in its turn.
    turn: usize,
    /// The entries whose interest may have changed.
    changed: BTreeSet<Token>,
    /// Streams to close, once they are no longer watched.
    closed: Vec<UnixStream>,
    next_token: Token,
    next_port: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            by_id: HashMap::new(),
            ready: BTreeSet::new(),
            sender: 0,
            turn: 0,
            changed: BTreeSet::new(),
            closed: Vec::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_LOCAL_PORT,
        }
    }
}

impl Table {
    /// Whether one more connection fits.
    pub(super) fn has_room(&self) -> bool {
        self.entries.len() < MAX_CONNECTIONS
    }

    /// A token that is not in use.
    pub(super) fn new_token(&mut self) -> Token {
        loop {
            let token = self.next_token;
            self.next_token = token.checked_add(1).unwrap_or(FIRST_TOKEN);
            if !self.entries.contains_key(&token) {
                return token;
            }
        }
    }

    /// An unused ID for a connection to a port of the guest, if the table has room.
    pub(super) fn new_id(&mut self, guest_port: u32) -> Option<ConnectionId> {
        if !self.has_room() {
            return None;
        }
        // There are far more ports than connections.
        loop {
            let id = ConnectionId { host_port: self.next_port, guest_port };
            self.next_port = if self.next_port == LAST_LOCAL_PORT {
                FIRST_LOCAL_PORT
            } else {
                self.next_port + 1
            };
            if !self.by_id.contains_key(&id) {
                return Some(id);
            }
        }
    }

    pub(super) fn insert(&mut self, token: Token, entry: Entry) {
        self.by_id.insert(entry.connection.id(), token);
        self.entries.insert(token, entry);
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut Entry> {
        self.entries.get_mut(&token)
    }

    /// The entry that the guest knows by these ports.
    pub(super) fn token(&self, id: ConnectionId) -> Option<Token> {
        self.by_id.get(&id).copied()
    }

    /// The tokens of all entries.
    pub(super) fn tokens(&self) -> Vec<Token> {
        self.entries.keys().copied().collect()
    }

    /// Removes the entry from the index by ports: the guest may use these again.
    pub(super) fn forget(&mut self, token: Token) {
        if let Some(entry) = self.entries.get(&token) {
            let id = entry.connection.id();
            if self.by_id.get(&id) == Some(&token) {
                self.by_id.remove(&id);
            }
        }
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<Entry> {
        self.forget(token);
        self.ready.remove(&token);
        self.changed.remove(&token);
        self.entries.remove(&token)
    }

    /// Updates the indexes after an entry has changed.
    pub(super) fn changed(&mut self, token: Token) {
        let Some(entry) = self.entries.get(&token) else { return };
        if entry.connection.next(entry.host.is_readable()).is_some() {
            self.ready.insert(token);
        } else {
            self.ready.remove(&token);
        }
        self.changed.insert(token);
    }

    pub(super) fn pop_changed(&mut self) -> Option<Token> {
        self.changed.pop_first()
    }

    /// The entry whose turn it is to send, and how many bytes of data are left in the turn. The turn,
    /// which may include waiting for buffers, lasts until the entry has nothing to send or has
    /// [spent](Self::spend) it.
    pub(super) fn next_ready(&mut self) -> Option<(Token, usize)> {
        if self.turn == 0 || !self.ready.contains(&self.sender) {
            let after = self.sender.saturating_add(1)..;
            self.sender = *self.ready.range(after).next().or_else(|| self.ready.first())?;
            self.turn = BYTE_BUDGET;
        }
        Some((self.sender, self.turn))
    }

    /// Counts `count` bytes of data against the current turn.
    pub(super) fn spend(&mut self, count: usize) {
        self.turn = self.turn.saturating_sub(count);
    }

    /// Closes a stream when [`take_closed`](Self::take_closed) is called.
    pub(super) fn close(&mut self, stream: UnixStream) {
        self.closed.push(stream);
    }

    pub(super) fn take_closed(&mut self) -> Vec<UnixStream> {
        std::mem::take(&mut self.closed)
    }
}
