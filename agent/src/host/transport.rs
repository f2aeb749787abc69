//! Finds the transport to the host, a vsock device or the named virtio-serial port, and reports the boot on it.

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

/// Timeout for the port to get its name, which the host sends some time after the device appears.
const PORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout for the host to receive a fatal error.
const FATAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no transport to the host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    #[error("this VM has neither a vsock device nor a virtio-serial port {SERIAL_PORT_NAME:?}")]
    Missing,
    #[error("cannot listen on vsock port {AGENT_PORT}: {0}")]
    Listen(#[source] io::Errno),
    #[error("cannot open the virtio-serial port {path}: {errno}")]
    Open { path: String, errno: io::Errno },
}

/// The transport to the host, with the boot report.
pub(crate) enum Transport {
    Vsock {
        listener: OwnedFd,
        /// Stays open until the VM ends, so that the host sees that. None if the host does not listen,
        /// which is optional.
        report: Option<OwnedFd>,
    },
    /// The host receives the events once it attaches.
    Serial { port: OwnedFd, events: Vec<Event> },
}

impl Transport {
    /// Finds the transport.
    pub(crate) fn find() -> Result<Self, TransportError> {
        if vsock::is_available() {
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

    /// Reports a stage of the boot.
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

    /// Reports that the boot failed, and waits until the host has received it or the timeout is over.
    pub(crate) fn fatal(mut self, message: String) {
        self.report(Event::Fatal { message });
        let deadline = Instant::now() + FATAL_TIMEOUT;
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
                    // A non-blocking write returns before the host has taken the bytes.
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}

fn find_port() -> Option<String> {
    let deadline = Instant::now() + PORT_TIMEOUT;
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

/// Waits until the host has attached and sent a hello, of any version.
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
