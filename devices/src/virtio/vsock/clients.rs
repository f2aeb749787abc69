//! Clients on the host that have not requested a port of the guest yet.
//!
//! A client sends `CONNECT <port>\n`, and may send data for the guest at once: only that line is read
//! from its stream here. When the guest accepts, the client receives `OK <port>\n`, with the port of
//! the host's end. When the guest refuses, the client is disconnected.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::Token;

/// The most clients without a connection: as many as there can be connections, because that many may
/// come at once.
pub(super) const MAX_CLIENTS: usize = super::MAX_CONNECTIONS;

/// Length of the longest line, `CONNECT 4294967295\n`, in bytes.
const MAX_LINE: usize = 19;

/// What a client requested.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Its line is not complete yet.
    Incomplete,
    /// A connection to this port of the guest.
    Connect(UnixStream, u32),
    /// Something else, or the client closed its stream.
    Refused(UnixStream),
}

/// The clients, by the token of their streams on the event loop.
#[derive(Debug, Default)]
pub(super) struct Clients(HashMap<Token, Client>);

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// The bytes read so far: never more than the line.
    line: Vec<u8>,
}

impl Clients {
    /// Whether there is room for one more.
    pub(super) fn has_room(&self) -> bool {
        self.0.len() < MAX_CLIENTS
    }

    pub(super) fn insert(&mut self, token: Token, stream: UnixStream) {
        self.0.insert(token, Client { stream, line: Vec::new() });
    }

    pub(super) fn contains(&self, token: Token) -> bool {
        self.0.contains_key(&token)
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<UnixStream> {
        self.0.remove(&token).map(|client| client.stream)
    }

    /// Handles a client whose stream is readable.
    pub(super) fn on_readable(&mut self, token: Token) -> Outcome {
        let Some(client) = self.0.get_mut(&token) else { return Outcome::Incomplete };
        let port = client.read_line();
        if port == Ok(None) {
            return Outcome::Incomplete;
        }
        match (self.remove(token), port) {
            (Some(stream), Ok(Some(port))) => Outcome::Connect(stream, port),
            (Some(stream), _) => Outcome::Refused(stream),
            (None, _) => Outcome::Incomplete,
        }
    }
}

/// The client will not get a connection.
#[derive(Debug, PartialEq, Eq)]
struct Refusal;

impl Client {
    /// Reads the bytes of the line that have arrived, and none behind it. Returns the port when the
    /// line is complete.
    fn read_line(&mut self) -> Result<Option<u32>, Refusal> {
        let mut buffer = [0; MAX_LINE];
        loop {
            let room = &mut buffer[..MAX_LINE - self.line.len()];
            let Some(seen) = receive(&self.stream, room, RecvFlags::PEEK)? else { return Ok(None) };
            let end = seen.iter().position(|&byte| byte == b'\n');
            let count = end.map_or(seen.len(), |end| end + 1);
            let taken = receive(&self.stream, &mut room[..count], RecvFlags::empty())?;
            self.line.extend_from_slice(taken.filter(|taken| taken.len() == count).ok_or(Refusal)?);
            if end.is_some() {
                return parse(&self.line).map(Some).ok_or(Refusal);
            }
            if count == 0 || self.line.len() == MAX_LINE {
                return Err(Refusal);
            }
        }
    }
}

fn receive<'a>(
    stream: &UnixStream,
    buffer: &'a mut [u8],
    flags: RecvFlags,
) -> Result<Option<&'a [u8]>, Refusal> {
    match recv(stream, &mut *buffer, flags | RecvFlags::DONTWAIT) {
        Ok((count, _)) => Ok(buffer.get(..count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(_) => Err(Refusal),
    }
}

/// Parses `CONNECT <port>\n`, with the port in decimal digits only.
fn parse(line: &[u8]) -> Option<u32> {
    let port = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    if !port.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(port).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn client() -> (Clients, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut clients = Clients::default();
        clients.insert(7, ours);
        (clients, theirs)
    }

    #[test]
    fn reads_the_line_and_not_a_byte_more() {
        let (mut clients, mut theirs) = client();
        theirs.write_all(b"CONNECT 1024\nhello\n").unwrap();
        let Outcome::Connect(mut stream, 1024) = clients.on_readable(7) else { panic!() };
        drop(theirs);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello\n");
        assert!(!clients.contains(7));
    }

    #[test]
    fn waits_for_a_line_in_pieces() {
        let (mut clients, mut theirs) = client();
        for piece in ["CON", "NECT", " 42949", "67295"] {
            assert!(matches!(clients.on_readable(7), Outcome::Incomplete));
            theirs.write_all(piece.as_bytes()).unwrap();
        }
        assert!(matches!(clients.on_readable(7), Outcome::Incomplete));
        theirs.write_all(b"\n").unwrap();
        assert!(matches!(clients.on_readable(7), Outcome::Connect(_, u32::MAX)));
    }

    #[test]
    fn refuses_any_other_line() {
        for line in [
            "\n",
            "CONNECT\n",
            "CONNECT \n",
            "CONNECT +1\n",
            "CONNECT -1\n",
            "CONNECT 1 \n",
            "CONNECT 1\r\n",
            "connect 1\n",
            "CONNECT 4294967296\n",
            "CONNECT 0000000000000000000000000001\n",
            "a line without an end, but with a length",
            "CONNECT \u{663}\n",
        ] {
            let (mut clients, mut theirs) = client();
            theirs.write_all(line.as_bytes()).unwrap();
            assert!(matches!(clients.on_readable(7), Outcome::Refused(_)), "{line:?}");
        }
    }

    #[test]
    fn refuses_a_client_that_disconnected() {
        let (mut clients, mut theirs) = client();
        theirs.write_all(b"CONNECT 1").unwrap();
        drop(theirs);
        assert!(matches!(clients.on_readable(7), Outcome::Refused(_)));
        let (mut clients, theirs) = client();
        drop(theirs);
        assert!(matches!(clients.on_readable(7), Outcome::Refused(_)));
    }
}
