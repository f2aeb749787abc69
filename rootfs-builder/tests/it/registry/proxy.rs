//! A TCP proxy in front of a real registry, which injects faults into its answers.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The fault of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// None: the answer is passed on.
    None,
    /// The connection breaks after this number of bytes of the body.
    Cut(usize),
    /// The connection stalls after this number of bytes of the body.
    Stall(usize),
    /// A pause after every 64 KiB of the body.
    Slow(Duration),
    /// This byte of the body is changed.
    Flip(usize),
    /// The `Range` header is removed from the request.
    Whole,
    /// The whole answer, without asking the registry.
    Instead(String),
    /// As `Instead`, followed by these pieces without an end.
    Endless(String, Vec<u8>),
}

/// Chooses the fault by the head of a request, and by the number of earlier requests with the same first line.
pub(crate) type Plan = dyn Fn(&str, usize) -> Fault + Send + Sync;

/// A proxy.
pub(crate) struct Proxy {
    /// `127.0.0.1:port`.
    pub(crate) address: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub(crate) fn start(
        registry: &str,
        plan: impl Fn(&str, usize) -> Fault + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (registry, seen) = (registry.to_owned(), heads.clone());
        let plan: Arc<Plan> = Arc::new(plan);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, registry) = (client.unwrap(), registry.clone());
                let (seen, plan) = (seen.clone(), plan.clone());
                // When one end closes, the other is closed, too.
                std::thread::spawn(move || serve(client, &registry, &seen, &*plan));
            }
        });
        Self { address, heads }
    }

    /// The heads of all requests so far.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// The heads of the requests with this in their first line.
    pub(crate) fn requests(&self, part: &str) -> Vec<String> {
        let mut heads = self.heads();
        heads.retain(|head| head.lines().next().unwrap_or_default().contains(part));
        heads
    }
}

/// Serves the only request of a connection.
fn serve(
    mut client: TcpStream,
    registry: &str,
    seen: &Mutex<Vec<String>>,
    plan: &Plan,
) -> Option<()> {
    let (head, _) = read_head(&mut client)?;
    if !head.starts_with("GET ") && !head.starts_with("POST ") {
        // The client tries TLS.
        client.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").ok()?;
        return None;
    }
    let line = head.lines().next().unwrap_or_default().to_owned();
    let nth = {
        let mut seen = seen.lock().unwrap();
        let before = seen.iter().filter(|head| head.starts_with(&line)).count();
        seen.push(head.clone());
        before
    };
    let fault = plan(&head, nth);
    if let Fault::Instead(answer) | Fault::Endless(answer, _) = &fault {
        let answer = answer.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        client.write_all(answer.as_bytes()).ok()?;
        if let Fault::Endless(_, piece) = &fault {
            loop {
                client.write_all(piece).ok()?;
            }
        }
        client.shutdown(Shutdown::Write).ok()?;
        return Some(());
    }
    let mut upstream = TcpStream::connect(registry).ok()?;
    let wanted = |line: &&str| {
        let is_range = line.to_lowercase().starts_with("range:");
        !(is_range && matches!(fault, Fault::Whole))
    };
    let head: Vec<&str> = head.trim_end().lines().filter(wanted).collect();
    let request = head.join("\r\n") + "\r\nConnection: close\r\n\r\n";
    upstream.write_all(request.as_bytes()).ok()?;
    let (answer, rest) = read_head(&mut upstream)?;
    client.write_all(answer.as_bytes()).ok()?;
    forward(&mut client, &mut upstream, rest, &fault)
}

fn forward(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    rest: Vec<u8>,
    fault: &Fault,
) -> Option<()> {
    let mut sent = 0;
    let mut piece = rest;
    loop {
        if let Fault::Flip(at) = fault
            && (sent..sent + piece.len()).contains(at)
        {
            piece[at - sent] ^= 1;
        }
        if let Fault::Cut(at) | Fault::Stall(at) = fault
            && sent + piece.len() > *at
        {
            client.write_all(&piece[..at - sent]).ok()?;
            if let Fault::Stall(_) = fault {
                // Until the other end closes.
                let _ = client.read(&mut [0; 1]);
            }
            return None;
        }
        client.write_all(&piece).ok()?;
        if let Fault::Slow(pause) = fault {
            std::thread::sleep(*pause);
        }
        sent += piece.len();
        piece.resize(64 << 10, 0);
        let count = upstream.read(&mut piece).ok()?;
        piece.truncate(count);
        if count == 0 {
            return Some(());
        }
    }
}

/// Everything up to the empty line, and the bytes after it.
fn read_head(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Some((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
        // No head in the first bytes of a TLS connection.
        if bytes.first().is_some_and(|first| !first.is_ascii_uppercase()) {
            return Some((String::new(), Vec::new()));
        }
        match stream.read(&mut buffer).ok()? {
            0 => return None,
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}
