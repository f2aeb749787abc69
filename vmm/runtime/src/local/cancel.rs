//! Blocking work on images ends when the future that waits for it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use boxlite_rootfs_builder::{Event, Progress};

/// Progress that says when to end.
pub(super) struct Cancellable {
    told: Arc<dyn Progress>,
    cancelled: Arc<AtomicBool>,
}

/// Ends the work when it is dropped.
pub(super) struct CancelOnDrop(Arc<AtomicBool>);

pub(super) fn on_drop(told: Arc<dyn Progress>) -> (Cancellable, CancelOnDrop) {
    let cancelled = Arc::<AtomicBool>::default();
    (Cancellable { told, cancelled: cancelled.clone() }, CancelOnDrop(cancelled))
}

impl Progress for Cancellable {
    fn report(&self, event: Event<'_>) {
        self.told.report(event);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.told.is_cancelled()
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
