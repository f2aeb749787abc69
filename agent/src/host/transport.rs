//! Finding the host: a vsock device, or the named virtio-serial port.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use boxlite_proto::message::{Event, Stage};
use boxlite_proto::session::Assembler;
use boxlite_proto::{AGENT_PORT, BOOT_REPORT_PORT, SERIAL_PORT_NAME};
use rustix::fs::{Mode, OFlags};
use rustix::io::{self, Errno, writev};

use super::connection::Session;
use crate::sys::{self, vsock};

const PORTS: &str = "/sys/class/virtio-ports";

/// A port gets its name from the host some time after its device was found.
const PORT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a fatal error waits for the host to hear it.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// No way to the host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    #[error(
        "this machine has neither a vsock device nor a virtio-serial port {SERIAL_PORT_NAME:?}"
    )]
    Missing,
    #[error("cannot listen on vsock port {AGENT_PORT}: {0}")]
    Listen(#[source] io::Errno),
    #[error("cannot open the virtio-serial port {path}: {errno}")]
    Open { path: String, errno: io::Errno },
}

/// The way to the host, and the boot report on it.
pub(crate) enum Transport {
    Vsock {
        listener: OwnedFd,
        /// Stays open for the machine's life, so that the host sees its end. None if the
        /// host does not listen: it need not.
        report: Option<OwnedFd>,
    },
    /// The host hears what happened once it attaches.
    Serial { port: OwnedFd, events: Vec<Event> },
}

impl Transport {
    /// Finds the host.
    pub(crate) fn find() -> Result<Self, TransportError> {
        if vsock::is_there() {
            let listener = vsock::listen(AGENT_PORT).map_err(TransportError::Listen)?;
            let report = vsock::connect(vsock::HOST, BOOT_REPORT_PORT).ok();
            return Ok(Self::Vsock { listener, report });
        }
        let path = find_port().ok_or(TransportError::Missing)?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let port = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| TransportError::Open { path, errno })?;
        Ok(Self::Serial { port, events: Vec::new() })
    }

    /// Tells the host how far the boot is.
    pub(crate) fn reached(&mut self, stage: Stage) {
        self.report(Event::Stage(stage));
    }

    fn report(&mut self, event: Event) {
        match self {
            Self::Vsock { report, .. } => {
                if let Some(connection) = report {
                    let sent = rustix::io::write(connection, &event.frame(0).to_bytes());
                    if sent.is_err() {
                        *report = None;
                    }
                }
            }
            Self::Serial { events, .. } => events.push(event),
        }
    }

    /// Tells the host that the boot failed, and waits until it knows, for a while at most.
    pub(crate) fn fatal(mut self, message: String) {
        self.report(Event::Fatal { message });
        let deadline = Instant::now() + LAST_WORDS;
        match self {
            Self::Vsock { report: Some(report), .. } => {
                while sys::ioctl::unsent_bytes(&report).is_ok_and(|n| n > 0)
                    && Instant::now() < deadline
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Self::Vsock { report: None, .. } => {}
            Self::Serial { port, events } => {
                if let Some(mut session) = wait_for_hello(&port, deadline) {
                    events.iter().for_each(|event| session.event(event));
                    let _ = session.outbox().write_with(|slices| writev(&port, slices));
                    // What was written without blocking leaves when the host's side gets to run.
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}

fn find_port() -> Option<String> {
    let deadline = Instant::now() + PORT_DEADLINE;
    loop {
        for entry in std::fs::read_dir(PORTS).into_iter().flatten().flatten() {
            let name = std::fs::read(entry.path().join("name")).unwrap_or_default();
            if name.trim_ascii() == SERIAL_PORT_NAME.as_bytes() {
                return Some(format!("/dev/{}", entry.file_name().to_string_lossy()));
            }
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until the host has attached and said hello, in whatever version.
fn wait_for_hello(port: &OwnedFd, deadline: Instant) -> Option<Session> {
    let (mut session, mut input) = (Session::default(), Assembler::default());
    let mut chunk = [0; 256];
    while Instant::now() < deadline {
        match rustix::io::read(port, &mut chunk) {
            Ok(n) if n > 0 => input.extend(&chunk[..n]),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(_) => return None,
        }
        let received = session.receive(&mut input);
        if session.waiting() > 0 {
            return Some(session);
        }
        received.ok()?;
    }
    None
}
