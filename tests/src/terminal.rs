//! The launcher on a pseudoterminal, as an interactive user runs it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pty::{grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OutputModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::Launcher;
use crate::invocation::{OUTPUT_LIMIT, describe};
use crate::sys;
use crate::transcript::Transcript;

const DEADLINE: Duration = Duration::from_secs(240);

/// A terminal with the launcher running on it.
#[derive(Debug)]
pub struct Terminal {
    /// The terminal emulator's end.
    master: File,
    /// The programs' end, kept open to read its modes after the launcher has exited. None once the output has to end.
    slave: Option<File>,
    child: Child,
    screen: Transcript,
    what: String,
    deadline: Instant,
}

impl Terminal {
    /// Runs the launcher with these arguments on a new terminal of this size, its controlling terminal.
    pub fn run(launcher: &Launcher, rows: u16, columns: u16, args: &[&str]) -> Self {
        let (master, slave) = open();
        // setsid(1) makes the terminal the controlling one, and then becomes the launcher.
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg(launcher.program())
            .args(args)
            .env("BOXLITE_HOME", launcher.home())
            .env("TERM", "vt100")
            .env_remove("RUST_LOG");
        for connect in [Command::stdin, Command::stdout, Command::stderr] {
            connect(&mut command, slave.try_clone().expect("cannot copy the terminal"));
        }
        let terminal_size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&slave, terminal_size).expect("cannot set the terminal's size");
        let what = describe(&command);
        let child = command.spawn().expect("cannot run setsid");
        let reader = master.try_clone().expect("cannot copy the terminal");
        let screen = Transcript::of(reader, Duration::ZERO);
        Self {
            master,
            slave: Some(slave),
            child,
            screen,
            what,
            deadline: Instant::now() + DEADLINE,
        }
    }

    /// Types these keys.
    pub fn type_keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("cannot write to the terminal");
    }

    /// Changes the size of the terminal, as a window manager does.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).expect("cannot set the terminal's size");
    }

    /// Waits until this text has appeared, then clears the recorded output.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        if !self.screen.wait_for(text, self.deadline) {
            let screen = self.screen.text();
            panic!("{}\n{text:?} does not appear on the terminal, but {screen:?}", self.what);
        }
        self.screen.clear();
    }

    /// What has appeared since the last [`wait_for`](Self::wait_for).
    pub fn screen(&self) -> String {
        self.screen.text()
    }

    /// The modes that programs change: echo, line editing, signals from keys; translation of LF into CR LF.
    pub fn modes(&self) -> (LocalModes, OutputModes) {
        let slave = self.slave.as_ref().expect("the terminal is closed");
        let modes: Termios = tcgetattr(slave).expect("cannot read the terminal's modes");
        (modes.local_modes, modes.output_modes)
    }

    /// Waits until the launcher has exited. Returns its exit code, and what has appeared since the last
    /// [`wait_for`](Self::wait_for).
    #[track_caller]
    pub fn finish(mut self) -> (Option<i32>, String) {
        let status = self.wait_for_exit();
        // The last output may still be on its way through the terminal, whose output ends when no program has it open.
        self.slave = None;
        let deadline = self.deadline.max(Instant::now() + OUTPUT_LIMIT);
        let ended = self.screen.wait_for_end(deadline);
        let (what, screen) = (&self.what, self.screen.text());
        assert!(ended, "{what}\nexited, but another process holds its terminal open: {screen}");
        (status.code(), screen)
    }

    /// Waits until the launcher has exited, and returns its exit code; the terminal stays.
    #[track_caller]
    pub fn wait(&mut self) -> Option<i32> {
        self.wait_for_exit().code()
    }

    #[track_caller]
    fn wait_for_exit(&mut self) -> ExitStatus {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status,
                Ok(None) if Instant::now() < self.deadline => {}
                _ => {
                    panic!("{}\ndid not end in time; on its terminal: {}", self.what, self.screen())
                }
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A new terminal: the emulator's end, and the programs' end.
fn open() -> (File, File) {
    let make = || -> rustix::io::Result<(OwnedFd, std::ffi::CString)> {
        let master = openpt(sys::NEW_TERMINAL)?;
        // Where there is no flag for it.
        fcntl_setfd(&master, FdFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        Ok((master, name))
    };
    let (master, name) = make().expect("cannot make a terminal");
    let name = name.into_string().expect("the terminal's name is not UTF-8");
    // Opening it would make it the controlling terminal of a session leader that has none; a test is no session leader.
    let slave = OpenOptions::new().read(true).write(true).open(name);
    (File::from(master), slave.expect("cannot open the terminal"))
}
