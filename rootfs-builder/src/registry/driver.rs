//! Runs the asynchronous requests of this crate's blocking calls.

use std::future::Future;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::error::{Error, Result};
use crate::progress::Progress;

/// Interval of checks for cancellation.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// A single-threaded runtime for one call.
pub(crate) struct Driver<'a> {
    runtime: Runtime,
    progress: &'a dyn Progress,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(progress: &'a dyn Progress) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::io("use", "the network".as_ref()))?;
        Ok(Self { runtime, progress })
    }

    /// Runs to completion or cancellation.
    pub(crate) fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let cancelled = async {
            while !self.progress.is_cancelled() {
                tokio::time::sleep(CANCEL_POLL).await;
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = cancelled => Err(Error::Cancelled),
                result = work => result,
            }
        })
    }
}

/// Runs `work` on a thread of its own, which a runtime may block even if the caller is a task of
/// another runtime.
pub(crate) fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let result = thread::scope(|scope| scope.spawn(work).join());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
