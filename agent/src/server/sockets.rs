//! Streams to sockets of the nested host.

use boxlite_proto::message::{Connect, Failure};

use super::Server;
use super::requests::other;
use crate::host::connection::ReplyTo;
use crate::socket::Socket;

/// Limit on open sockets: each may hold a window of memory. A runtime has one for each call that it answers and for
/// each open channel.
const MAX_SOCKETS: usize = 4096;

impl Server {
    /// Connects a stream to a socket, and returns the socket's ID.
    pub(super) fn open_socket(
        &mut self,
        request: &Connect,
        reply_to: ReplyTo,
    ) -> Result<u64, Failure> {
        if self.sockets.len() >= MAX_SOCKETS {
            return Err(other(format!("{MAX_SOCKETS} connections to sockets are open already")));
        }
        let id = self.new_id();
        let socket = Socket::connect(request, id, reply_to, &self.poller)?;
        self.sockets.insert(id, socket);
        Ok(id)
    }

    /// Moves data between sockets and their streams.
    pub(super) fn pump_sockets(&mut self) {
        self.sockets.retain(|_, socket| {
            let Some(connection) = self.connections.get_mut(&socket.reply_to.connection) else {
                return true;
            };
            let session = &mut connection.session;
            let Some(last) = socket.pump(session, &mut self.scratch) else { return true };
            session.respond(socket.reply_to.stream, &last);
            false
        });
    }
}
