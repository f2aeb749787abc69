//! Clients on the host that have not said yet which port of the guest they want.
//!
//! A client says `CONNECT <port>\n` and may go on at once: only that line is taken from its stream,
//! what follows is for the guest. It gets `OK <port>\n`, with the port of the host's end, when the
//! guest has accepted, and is hung up on when the guest has refused.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::Token;

/// How many clients may be thinking at the same time: as many as can be connected, for that many
/// may come at once.
pub(super) const MAX_CLIENTS: usize = super::MAX_CONNECTIONS;

/// `CONNECT 4294967295\n`.
const MAX_LINE: usize = 19;

/// What came of a client.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Its line is not complete.
    Undecided,
    /// It wants a connection to this port of the guest.
    Connect(UnixStream, u32),
    /// It went away, or said something else.
    Refused(UnixStream),
}

/// The clients, by the token that their streams are watched with.
#[derive(Debug, Default)]
pub(super) struct Clients(HashMap<Token, Client>);

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// What it has said so far: never more than its line.
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

    /// Listens to a client whose stream is readable.
    pub(super) fn listen(&mut self, token: Token) -> Outcome {
        let Some(client) = self.0.get_mut(&token) else { return Outcome::Undecided };
        let heard = client.listen();
        if heard == Ok(None) {
            return Outcome::Undecided;
        }
        match (self.remove(token), heard) {
            (Some(stream), Ok(Some(port))) => Outcome::Connect(stream, port),
            (Some(stream), _) => Outcome::Refused(stream),
            (None, _) => Outcome::Undecided,
        }
    }
}

/// The client will not get a connection.
#[derive(Debug, PartialEq, Eq)]
struct Refusal;

impl Client {
    /// Takes what is there of the line, and not a byte more, off the stream. Returns the port when
    /// the line is complete.
    fn listen(&mut self) -> Result<Option<u32>, Refusal> {
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

/// `CONNECT <port>\n`, the port in decimal and nothing else.
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
    fn takes_the_line_and_not_a_byte_more() {
        let (mut clients, mut theirs) = client();
        theirs.write_all(b"CONNECT 1024\nhello\n").unwrap();
        let Outcome::Connect(mut stream, 1024) = clients.listen(7) else { panic!() };
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
            assert!(matches!(clients.listen(7), Outcome::Undecided));
            theirs.write_all(piece.as_bytes()).unwrap();
        }
        assert!(matches!(clients.listen(7), Outcome::Undecided));
        theirs.write_all(b"\n").unwrap();
        assert!(matches!(clients.listen(7), Outcome::Connect(_, u32::MAX)));
    }

    #[test]
    fn refuses_everything_else() {
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
            assert!(matches!(clients.listen(7), Outcome::Refused(_)), "{line:?}");
        }
    }

    #[test]
    fn refuses_a_client_that_left() {
        let (mut clients, mut theirs) = client();
        theirs.write_all(b"CONNECT 1").unwrap();
        drop(theirs);
        assert!(matches!(clients.listen(7), Outcome::Refused(_)));
        let (mut clients, theirs) = client();
        drop(theirs);
        assert!(matches!(clients.listen(7), Outcome::Refused(_)));
    }
}
