//! An interrupt line that counts its interrupts.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use boxlite_hv::Interrupt;

/// The driver's end of an interrupt line. Clones are the same line.
#[derive(Clone, Debug, Default)]
pub struct Line(Arc<(Mutex<u32>, Condvar)>);

impl Line {
    /// The device's end of the line.
    pub fn interrupt(&self) -> Interrupt {
        let line = self.clone();
        Interrupt::new(move || {
            *line.count() += 1;
            line.0.1.notify_all();
            Ok(())
        })
    }

    /// How often the line was raised.
    pub fn raised(&self) -> u32 {
        *self.count()
    }

    /// Waits until [`raised`](Self::raised) is no longer `seen`. False after `timeout`.
    pub fn wait_beyond(&self, seen: u32, timeout: Duration) -> bool {
        let waited = self.0.1.wait_timeout_while(self.count(), timeout, |count| *count == seen);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn count(&self) -> MutexGuard<'_, u32> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
