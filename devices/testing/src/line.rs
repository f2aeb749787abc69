//! An interrupt line that counts.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use boxlite_hv::Interrupt;

/// An interrupt line, as its driver sees it. Clones are the same line.
#[derive(Clone, Debug, Default)]
pub struct Line(Arc<(Mutex<u32>, Condvar)>);

impl Line {
    /// What the device raises.
    pub fn interrupt(&self) -> Interrupt {
        let line = self.clone();
        Interrupt::new(move || {
            *line.count() += 1;
            line.0.1.notify_all();
            Ok(())
        })
    }

    /// How often the line rose.
    pub fn raised(&self) -> u32 {
        *self.count()
    }

    /// Waits until the line has risen more often than `seen` times. False after `patience`.
    pub fn wait_beyond(&self, seen: u32, patience: Duration) -> bool {
        let waited = self.0.1.wait_timeout_while(self.count(), patience, |count| *count == seen);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn count(&self) -> MutexGuard<'_, u32> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
