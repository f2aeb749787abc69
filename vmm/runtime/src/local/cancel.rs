//! Cancels blocking work on images when the future that waits for it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use boxlite_rootfs_builder::{Event, Progress};

/// A progress receiver that also tells the work when to stop.
pub(super) struct Cancellable {
    inner: Arc<dyn Progress>,
    cancelled: Arc<AtomicBool>,
}

/// Cancels the work on drop.
pub(super) struct CancelOnDrop(Arc<AtomicBool>);

pub(super) fn on_drop(inner: Arc<dyn Progress>) -> (Cancellable, CancelOnDrop) {
    let cancelled = Arc::<AtomicBool>::default();
    (Cancellable { inner, cancelled: cancelled.clone() }, CancelOnDrop(cancelled))
}

impl Progress for Cancellable {
    fn report(&self, event: Event<'_>) {
        self.inner.report(event);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.inner.is_cancelled()
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
