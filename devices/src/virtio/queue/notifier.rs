//! Interrupts and failures of a device: what its driver is told, and what is logged.

use std::borrow::Cow;
use std::fmt;

use super::Virtqueue;
use crate::virtio::QueueInterrupt;
use crate::{GuestMemory, LogBudget};

/// A device has failed until its driver resets it. The driver has been notified, and the reason was
/// logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device waits for a reset by its driver")]
pub struct NeedsReset;

/// Notifies the driver, from activation to reset of a device.
#[derive(Debug)]
pub(crate) struct Notifier {
    /// As in `virtio-rng`, for messages.
    device: Cow<'static, str>,
    interrupt: QueueInterrupt,
    log: LogBudget,
    failed: bool,
}

impl Notifier {
    pub(crate) fn new(
        device: impl Into<Cow<'static, str>>,
        interrupt: QueueInterrupt,
        log: LogBudget,
    ) -> Self {
        Self { device: device.into(), interrupt, log, failed: false }
    }

    /// Ends a batch: interrupts the driver if it wants to know what was used in `queues`, and
    /// fails the device if the driver broke one of them.
    pub(crate) fn finish(
        &mut self,
        memory: &GuestMemory,
        queues: &mut [&mut Virtqueue],
    ) -> Result<(), NeedsReset> {
        self.check(queues)?;
        let mut due = false;
        for queue in queues {
            match queue.take_interrupt(memory) {
                Ok(wanted) => due |= wanted,
                Err(e) => return Err(self.broken(queue.name, &e)),
            }
        }
        match due {
            true => {
                self.interrupt.used_buffer().map_err(|e| self.fail(format_args!("interrupt: {e}")))
            }
            false => Ok(()),
        }
    }

    /// Fails the device if the driver broke one of `queues`, or if it failed before.
    pub(crate) fn check(&mut self, queues: &mut [&mut Virtqueue]) -> Result<(), NeedsReset> {
        if self.failed {
            return Err(NeedsReset);
        }
        for queue in queues {
            if let Some(e) = queue.take_failure() {
                return Err(self.broken(queue.name, &e));
            }
        }
        Ok(())
    }

    /// Stops the device until its driver resets it: logs the reason and sets DEVICE_NEEDS_RESET
    /// (section 2.1.2).
    pub(crate) fn fail(&mut self, reason: impl fmt::Display) -> NeedsReset {
        if !std::mem::replace(&mut self.failed, true) {
            self.warn(format_args!("stops until its driver resets it: {reason}"));
            // Without a working interrupt the driver sees the failure when it reads the status.
            let _ = self.interrupt.device_failed();
        }
        NeedsReset
    }

    fn broken(&mut self, queue: &str, error: &super::QueueError) -> NeedsReset {
        self.fail(format_args!("the driver broke its {queue} queue: {error}"))
    }

    /// Logs a fault of the driver or of the device.
    pub(crate) fn warn(&self, message: fmt::Arguments<'_>) {
        self.log.warn(format_args!("{}: {message}", self.device));
    }
}
