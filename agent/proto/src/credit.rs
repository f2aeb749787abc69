//! Credit-based flow control of one channel of one stream.
//!
//! A writer starts with [`WINDOW`] bytes of credit and spends them as it sends; the reader grants
//! bytes back once its consumer has taken them. So at most a window is ever buffered on the reader's
//! side, whatever the consumer does.

/// Bytes that may be under way on one channel before the reader must have taken any.
pub const WINDOW: u32 = 256 << 10;

/// The peer broke the window: sent more than it was granted, or granted more than was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer broke flow control")]
pub struct CreditError;

/// The writer's side: what may still be sent.
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

    /// Spends credit for `bytes` that are being sent; at most [`available`](Self::available).
    pub fn spend(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.available());
        self.0 = self.0.saturating_sub(bytes.min(u32::MAX as usize) as u32);
    }

    /// The reader granted `bytes`.
    pub fn grant(&mut self, bytes: u32) -> Result<(), CreditError> {
        self.0 = self.0.checked_add(bytes).filter(|n| *n <= WINDOW).ok_or(CreditError)?;
        Ok(())
    }
}

/// The reader's side: what the peer may still send, and what is to be granted back.
#[derive(Debug)]
pub struct ReceiveWindow {
    /// What the peer may still send.
    open: u32,
    /// What arrived and the consumer has not taken.
    held: u32,
    /// What the consumer took and the peer was not granted again.
    taken: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { open: WINDOW, held: 0, taken: 0 }
    }
}

impl ReceiveWindow {
    /// `bytes` arrived.
    pub fn receive(&mut self, bytes: usize) -> Result<(), CreditError> {
        let bytes = u32::try_from(bytes).map_err(|_| CreditError)?;
        self.open = self.open.checked_sub(bytes).ok_or(CreditError)?;
        self.held += bytes;
        Ok(())
    }

    /// Bytes that arrived and the consumer has not taken.
    pub fn held(&self) -> usize {
        self.held as usize
    }

    /// The consumer took `bytes` that had arrived. Returns the credit to grant now, if enough has
    /// come together to be worth a frame.
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
