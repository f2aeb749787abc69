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

use anyhow::Result;

/// Runs a command's async work.
pub(crate) fn on_tokio<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // Does not wait for a thread that may still block on standard input.
    runtime.shutdown_background();
    result
}
