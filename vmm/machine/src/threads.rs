//! The threads of a VM process. Every thread is started here, and its panic is reported with its message. Without
//! the report, the work of that thread would stop silently, and a pause or the end of the box would wait for the
//! thread forever.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// Starts threads. Clones report to the same callback.
#[derive(Clone)]
pub(super) struct Threads {
    report: Arc<dyn Fn(String) + Send + Sync>,
    #[cfg(test)]
    fault: Option<fault::Fault>,
}

impl Threads {
    /// `report` is called on the thread that failed, with one line for people.
    pub(super) fn new(report: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self {
            report: Arc::new(report),
            #[cfg(test)]
            fault: fault::take(),
        }
    }

    /// The same, with another callback for reports.
    pub(super) fn reporting(&self, report: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self {
            report: Arc::new(report),
            #[cfg(test)]
            fault: self.fault.clone(),
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
            let work = fault::inject(threads.fault.clone(), &name, work);
            if let Err(panic) = contain(work) {
                threads.failed(format!("thread {name} panicked: {panic}"));
            }
        })
    }

    /// Reports that a thread cannot do its work.
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

/// Runs `work`, and catches a panic. The error is the panic's message.
pub(super) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // State that the work shares is behind locks, which are taken despite poisoning.
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// Fault injection: lets a test make one thread of a process panic or hang.
#[cfg(test)]
pub(super) mod fault {
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A fault of one thread of a process.
    #[derive(Clone, Debug)]
    pub(crate) struct Fault {
        /// The thread's name.
        pub(crate) thread: &'static str,
        /// Whether the fault occurs at the next check.
        pub(crate) armed: Arc<AtomicBool>,
        /// Whether the thread hangs, as in an uninterruptible system call; otherwise it panics.
        pub(crate) hangs: bool,
    }

    impl Fault {
        pub(crate) fn new(thread: &'static str, armed: bool) -> Self {
            Self { thread, armed: Arc::new(AtomicBool::new(armed)), hangs: false }
        }
    }

    thread_local! {
        static NEXT: RefCell<Option<Fault>> = const { RefCell::new(None) };
        static OWN: RefCell<Option<Fault>> = const { RefCell::new(None) };
    }

    /// Gives the fault to the next [`Threads`](super::Threads) that this thread makes.
    pub(crate) fn arm(fault: Fault) {
        NEXT.set(Some(fault));
    }

    pub(super) fn take() -> Option<Fault> {
        NEXT.take()
    }

    /// Wraps `work`: its thread checks for its fault at the start and at each [`check`].
    pub(super) fn inject(fault: Option<Fault>, name: &str, work: impl FnOnce()) -> impl FnOnce() {
        let own = fault.filter(|fault| fault.thread == name);
        move || {
            OWN.set(own);
            check();
            work();
        }
    }

    /// Gives the fault to the calling thread, which was not started by [`Threads`](super::Threads).
    pub(crate) fn arm_self(fault: Fault) {
        OWN.set(Some(fault));
    }

    /// Panics or hangs if the calling thread has a fault that is armed.
    pub(crate) fn check() {
        let fault =
            OWN.with_borrow(|own| own.clone().filter(|own| own.armed.load(Ordering::SeqCst)));
        let Some(fault) = fault else { return };
        assert!(fault.hangs, "injected by a test");
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
