//! Logs to the kernel log, which reaches the console if there is one.
//!
//! Each message is one write and hence one record, short enough for the kernel to keep all of it.

use std::fmt;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};

/// The kernel cuts records at about 1,000 bytes.
const MAX_RECORD: usize = 900;

static KMSG: OnceLock<OwnedFd> = OnceLock::new();

/// Starts to log to the kernel log, panics included. Before that, and without a kernel log, messages go to
/// standard error.
pub(crate) fn init() {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(kmsg) = rustix::fs::open("/dev/kmsg", flags, Mode::empty()) {
        let _ = KMSG.set(kmsg);
    }
    std::panic::set_hook(Box::new(|panic| write(b'2', format_args!("panic: {panic}"))));
}

/// Logs a failure after which the agent continues.
pub(crate) fn warn(message: fmt::Arguments<'_>) {
    write(b'4', message);
}

/// Logs a failure after which the agent cannot continue.
pub(crate) fn error(message: fmt::Arguments<'_>) {
    write(b'3', message);
}

fn write(level: u8, message: fmt::Arguments<'_>) {
    let mut record = Vec::with_capacity(128);
    let _ = write!(record, "<{}>boxlite-agent: {message}", level as char);
    record.truncate(MAX_RECORD);
    // One record is one line.
    for byte in &mut record {
        if *byte == b'\n' {
            *byte = b' ';
        }
    }
    let written = match KMSG.get() {
        Some(kmsg) => rustix::io::write(kmsg, &record),
        None => {
            record.push(b'\n');
            rustix::io::write(rustix::stdio::stderr(), &record)
        }
    };
    // A failure of the log cannot be reported anywhere else.
    let _ = written;
}
