//! The threads of a box's process. Every one is started here and watched: a panic is reported with
//! its message to whoever decides about the box. Without a report, the work of that thread would stop
//! silently, and a pause or the end of the box would wait for it without a bound.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// Starts threads. Clones report to the same place.
#[derive(Clone)]
pub(super) struct Threads {
    report: Arc<dyn Fn(String) + Send + Sync>,
    #[cfg(test)]
    fuse: Option<seam::Fuse>,
}

impl Threads {
    /// `report` is called on the thread that failed, with one line for people.
    pub(super) fn new(report: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self {
            report: Arc::new(report),
            #[cfg(test)]
            fuse: seam::take(),
        }
    }

    /// Threads of the same process that report to another place.
    pub(super) fn reporting(&self, report: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self {
            report: Arc::new(report),
            #[cfg(test)]
            fuse: self.fuse.clone(),
        }
    }

    /// Starts a thread.
    pub(super) fn spawn(
        &self,
        name: impl Into<String>,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let (name, threads) = (name.into(), self.clone());
        Builder::new().name(name.clone()).spawn(move || {
            #[cfg(test)]
            let work = seam::fused(threads.fuse.clone(), &name, work);
            if let Err(panic) = contain(work) {
                threads.failed(format!("thread {name} panicked: {panic}"));
            }
        })
    }

    /// Reports that a thread has ended which should not have, or cannot do its work.
    pub(super) fn failed(&self, why: String) {
        tracing::error!("{why}");
        (self.report)(why);
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").finish_non_exhaustive()
    }
}

/// Does `work`. The error is the message that it panicked with.
pub(super) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // What the work shared with others is behind locks, which are taken in spite of a poisoning.
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// Lets a test make one thread of a process panic.
#[cfg(test)]
pub(super) mod seam {
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// What becomes of one thread of a process.
    #[derive(Clone, Debug)]
    pub(crate) struct Fuse {
        /// Its name.
        pub(crate) thread: &'static str,
        /// Whether it happens now.
        pub(crate) lit: Arc<AtomicBool>,
        /// Whether it is never heard of again, as in an uninterruptible system call; else it panics.
        pub(crate) hangs: bool,
    }

    impl Fuse {
        pub(crate) fn new(thread: &'static str, lit: bool) -> Self {
            Self { thread, lit: Arc::new(AtomicBool::new(lit)), hangs: false }
        }
    }

    thread_local! {
        static NEXT: RefCell<Option<Fuse>> = const { RefCell::new(None) };
        static OWN: RefCell<Option<Fuse>> = const { RefCell::new(None) };
    }

    /// The next [`Threads`](super::Threads) that this thread makes have this fuse.
    pub(crate) fn arm(fuse: Fuse) {
        NEXT.set(Some(fuse));
    }

    pub(super) fn take() -> Option<Fuse> {
        NEXT.take()
    }

    /// `work`, on a thread that looks at its fuse at its start and at each [`check`].
    pub(super) fn fused(fuse: Option<Fuse>, name: &str, work: impl FnOnce()) -> impl FnOnce() {
        let own = fuse.filter(|fuse| fuse.thread == name);
        move || {
            OWN.set(own);
            check();
            work();
        }
    }

    /// The fuse of the calling thread, which was not started by [`Threads`](super::Threads).
    pub(crate) fn arm_self(fuse: Fuse) {
        OWN.set(Some(fuse));
    }

    /// Does what the fuse of the calling thread says, if it is lit.
    pub(crate) fn check() {
        let fuse = OWN.with_borrow(|own| own.clone().filter(|own| own.lit.load(Ordering::SeqCst)));
        let Some(fuse) = fuse else { return };
        assert!(fuse.hangs, "blown up by a test");
        loop {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_panic_is_reported_with_thread_and_message() {
        let (sender, reports) = channel();
        let threads = Threads::new(move |why| sender.send(why).unwrap());
        threads.spawn("fine", || {}).unwrap().join().unwrap();
        threads.spawn("disk", || panic!("sector {}", 7)).unwrap().join().unwrap();
        assert_eq!(reports.try_recv().unwrap(), "thread disk panicked: sector 7");
        let (sender, others) = channel();
        let elsewhere = threads.reporting(move |why| sender.send(why).unwrap());
        elsewhere.spawn("vcpu0", || panic!("static")).unwrap().join().unwrap();
        assert_eq!(others.try_recv().unwrap(), "thread vcpu0 panicked: static");
        let odd = || std::panic::panic_any(7_u8);
        threads.spawn("odd", odd).unwrap().join().unwrap();
        assert_eq!(reports.try_recv().unwrap(), "thread odd panicked: no message");
        assert!(reports.try_recv().is_err());
    }
}
