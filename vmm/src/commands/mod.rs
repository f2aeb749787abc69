//! The commands: a module for each has its arguments and its implementation.

pub(crate) mod attach;
pub(crate) mod completion;
pub(crate) mod copy;
pub(crate) mod create;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod lifecycle;
pub(crate) mod list;
pub(crate) mod login;
pub(crate) mod logs;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod run;
pub(crate) mod softhost;
pub(crate) mod stats;

use std::future::Future;
use std::io;
use std::time::Duration;

use anyhow::{Context, Result};
use boxlite_runtime::client::Attachment;
use tokio::runtime::{Builder, Runtime};

/// Timeout for the blocking threads of an interrupted command, which remove their unfinished files.
const CLEANUP: Duration = Duration::from_secs(5);

/// Runs a command's async work.
pub(crate) fn on_tokio<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = runtime()?;
    let result = runtime.block_on(command);
    // Does not wait for a thread that may still block on standard input.
    runtime.shutdown_background();
    result
}

/// Runs the async work of a command that writes files of this machine. A signal drops the work, and waits until the
/// work's blocking threads have removed unfinished files. The exit code is then a shell's for that signal.
pub(crate) fn on_tokio_until_interrupted(command: impl Future<Output = Result<u8>>) -> Result<u8> {
    let runtime = runtime()?;
    let mut attachment = {
        let _context = runtime.enter();
        Attachment::new(false).context("cannot handle signals")?
    };
    run_until(runtime, command, attachment.interrupted())
}

/// Runs `command` until it ends or `interrupted` returns a signal.
fn run_until(
    runtime: Runtime,
    command: impl Future<Output = Result<u8>>,
    interrupted: impl Future<Output = i32>,
) -> Result<u8> {
    let ended = runtime.block_on(async {
        tokio::select! {
            result = command => Ok(result),
            signal = interrupted => Err(signal),
        }
    });
    match ended {
        Ok(result) => {
            runtime.shutdown_background();
            result
        }
        Err(signal) => {
            runtime.shutdown_timeout(CLEANUP);
            Ok(128 | (signal & 0x7f) as u8)
        }
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::oneshot;
    use tokio::task::spawn_blocking;

    use super::*;

    #[test]
    fn an_interrupted_command_removes_its_unfinished_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("unfinished");
        let unfinished = path.clone();
        let (started, is_started) = oneshot::channel();
        let command = async {
            let (_input, chunks) = mpsc::channel::<()>();
            let writing = spawn_blocking(move || {
                std::fs::write(&unfinished, "a part").unwrap();
                started.send(()).unwrap();
                // Fails when the command is dropped.
                assert!(chunks.recv().is_err());
                std::fs::remove_file(&unfinished).unwrap();
            });
            writing.await?;
            Ok(0)
        };
        let interrupted = async {
            is_started.await.unwrap();
            2
        };
        assert_eq!(run_until(runtime().unwrap(), command, interrupted).unwrap(), 130);
        assert!(!path.exists());
    }

    #[test]
    fn a_command_that_is_not_interrupted_has_its_own_exit_code() {
        let code = run_until(runtime().unwrap(), async { Ok(7) }, std::future::pending());
        assert_eq!(code.unwrap(), 7);
    }
}
