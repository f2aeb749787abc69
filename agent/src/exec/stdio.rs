//! The stdio of a command: pipes, a terminal, or `/dev/null`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use boxlite_proto::message::TerminalSize;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::{self, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::Winsize;

/// The group of terminals (`tty` on every distribution), to which `write` and `mesg` belong.
const TTY_GROUP: u32 = 5;

/// Both ends of a command's stdio.
pub(crate) struct Stdio {
    /// The command's standard input, output and error.
    command_ends: [OwnedFd; 3],
    /// The agent's end of standard input.
    pub(crate) input: Option<OwnedFd>,
    /// The agent's ends of standard output and error; a terminal has only the first.
    pub(crate) outputs: [Option<OwnedFd>; 2],
}

impl Stdio {
    /// Three pipes, or `/dev/null` as the input. The pipes belong to `uid`, so that the command may open them by
    /// name (`/dev/stdout`).
    pub(crate) fn pipes(with_input: bool, uid: Uid) -> io::Result<Self> {
        let (input, stdin) = if with_input {
            let (read, write) = pipe(uid)?;
            (Some(write), read)
        } else {
            (None, rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
        };
        let (output, stdout) = pipe(uid)?;
        let (error, stderr) = pipe(uid)?;
        if let Some(input) = &input {
            set_nonblocking(input)?;
        }
        set_nonblocking(&output)?;
        set_nonblocking(&error)?;
        let command_ends = [stdin, stdout, stderr];
        Ok(Self { command_ends, input, outputs: [Some(output), Some(error)] })
    }

    /// `/dev/null` for all three.
    pub(crate) fn null() -> io::Result<Self> {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let command_ends = [fcntl_dupfd_cloexec(&null, 3)?, fcntl_dupfd_cloexec(&null, 3)?, null];
        Ok(Self { command_ends, input: None, outputs: [None, None] })
    }

    /// A terminal of this size, owned by `uid`.
    pub(crate) fn terminal(size: TerminalSize, uid: Uid) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        resize(&master, size)?;
        rustix::fs::fchown(&slave, Some(uid), Some(Gid::from_raw(TTY_GROUP)))?;
        set_nonblocking(&master)?;
        let command_ends =
            [fcntl_dupfd_cloexec(&slave, 3)?, fcntl_dupfd_cloexec(&slave, 3)?, slave];
        // Two descriptors for one terminal, so that each direction has its own readiness.
        let input = fcntl_dupfd_cloexec(&master, 3)?;
        Ok(Self { command_ends, input: Some(input), outputs: [Some(master), None] })
    }

    /// The command's standard input, output and error.
    pub(crate) fn command_ends(&self) -> [BorrowedFd<'_>; 3] {
        self.command_ends.each_ref().map(AsFd::as_fd)
    }
}

/// Sets the size of a terminal; its foreground process group gets SIGWINCH.
pub(crate) fn resize(master: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size)
}

fn pipe(owner: Uid) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Both ends are one inode, which no other process can name.
    rustix::fs::fchown(&read, Some(owner), None)?;
    Ok((read, write))
}

/// Makes the agent's end non-blocking. A command expects blocking stdio.
fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}
