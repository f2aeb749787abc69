//! The commands: what each takes on the command line, and what it does.

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

use anyhow::Result;

/// Runs the async work of a command.
pub(crate) fn on_tokio<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // A thread may still wait for input that nobody wants any more.
    runtime.shutdown_background();
    result
}
