//! Credit-based flow control of one channel of one stream.
//!
//! A writer starts with [`WINDOW`] bytes of credit and spends it as it sends. The reader grants credit again once
//! its consumer has taken the data. So the reader buffers at most a window, whatever the consumer does.

/// Bytes that a writer may send on a channel before the reader has taken any.
pub const WINDOW: u32 = 256 << 10;

/// The peer broke the window: sent more than it was granted, or granted more than was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer broke flow control")]
pub struct CreditError;

/// The writer's side: the credit that is left.
#[derive(Debug)]
pub struct SendWindow(u32);

impl Default for SendWindow {
    fn default() -> Self {
        Self(WINDOW)
    }
}

impl SendWindow {
    /// Bytes that may be sent now.
    pub fn available(&self) -> usize {
        self.0 as usize
    }

    /// Spends credit for `bytes` that are sent; at most [`available`](Self::available).
    pub fn spend(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.available());
        self.0 = self.0.saturating_sub(bytes.min(u32::MAX as usize) as u32);
    }

    /// Adds `bytes` that the reader has granted.
    pub fn grant(&mut self, bytes: u32) -> Result<(), CreditError> {
        self.0 = self.0.checked_add(bytes).filter(|n| *n <= WINDOW).ok_or(CreditError)?;
        Ok(())
    }
}

/// The reader's side: the peer's credit, and the bytes to grant again.
#[derive(Debug)]
pub struct ReceiveWindow {
    /// Bytes that the peer may still send.
    open: u32,
    /// Bytes that have arrived and that the consumer has not taken.
    held: u32,
    /// Bytes that the consumer has taken and that are not granted again.
    taken: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { open: WINDOW, held: 0, taken: 0 }
    }
}

impl ReceiveWindow {
    /// Records that `bytes` have arrived.
    pub fn receive(&mut self, bytes: usize) -> Result<(), CreditError> {
        let bytes = u32::try_from(bytes).map_err(|_| CreditError)?;
        self.open = self.open.checked_sub(bytes).ok_or(CreditError)?;
        self.held += bytes;
        Ok(())
    }

    /// Bytes that have arrived and that the consumer has not taken.
    pub fn held(&self) -> usize {
        self.held as usize
    }

    /// Records that the consumer has taken `bytes`. Returns the credit to grant now, once it is worth a frame: a
    /// quarter of the window.
    #[must_use]
    pub fn take(&mut self, bytes: usize) -> Option<u32> {
        let bytes = self.held.min(bytes.try_into().unwrap_or(u32::MAX));
        self.held -= bytes;
        self.taken += bytes;
        (self.taken >= WINDOW / 4).then(|| {
            let grant = std::mem::take(&mut self.taken);
            self.open += grant;
            grant
        })
    }
}
