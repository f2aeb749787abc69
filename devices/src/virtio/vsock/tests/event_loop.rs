//! Threads of tests: the device's event loop, and work in the background.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::guest::PATIENCE;
use crate::{EventLoop, LoopHandle};

/// Runs `work` on another thread. The returned function waits for its result, for [`PATIENCE`] at
/// most.
pub(super) fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl FnOnce() -> T {
    let (sender, receiver): (_, Receiver<T>) = channel();
    let thread = thread::spawn(move || {
        let _ = sender.send(work());
    });
    move || match receiver.recv_timeout(PATIENCE) {
        Ok(result) => {
            thread.join().unwrap();
            result
        }
        Err(RecvTimeoutError::Timeout) => panic!("the background work takes too long"),
        Err(RecvTimeoutError::Disconnected) => {
            panic!("the background work failed: {:?}", thread.join().is_err())
        }
    }
}

/// An event loop on a thread of its own.
pub(super) struct TestLoop {
    pub(super) handle: LoopHandle,
    thread: Option<JoinHandle<()>>,
    /// `/proc/<process>/task/<thread>`.
    proc: PathBuf,
}

static LOOPS: AtomicU32 = AtomicU32::new(0);

impl TestLoop {
    pub(super) fn start() -> Self {
        let event_loop = EventLoop::new().unwrap();
        let handle = event_loop.handle();
        let (sender, receiver) = channel();
        let name = format!("vsock-{}", LOOPS.fetch_add(1, Ordering::Relaxed));
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || {
                let _ = sender.send(fs::read_link("/proc/thread-self").unwrap());
                event_loop.run().unwrap();
            })
            .unwrap();
        let proc = PathBuf::from("/proc").join(receiver.recv().unwrap());
        Self { handle, thread: Some(thread), proc }
    }

    /// CPU time that the loop has used.
    fn busy(&self) -> Duration {
        let schedstat = fs::read_to_string(self.proc.join("schedstat")).unwrap();
        let nanoseconds = schedstat.split_whitespace().next().unwrap().parse().unwrap();
        Duration::from_nanos(nanoseconds)
    }

    /// Asserts that the loop sleeps.
    pub(super) fn assert_idle(&self) {
        thread::sleep(Duration::from_millis(20));
        let before = self.busy();
        thread::sleep(Duration::from_millis(150));
        let busy = self.busy() - before;
        assert!(busy < Duration::from_millis(5), "the event loop was busy for {busy:?}");
    }
}

impl Drop for TestLoop {
    fn drop(&mut self) {
        self.handle.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}
