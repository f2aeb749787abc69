//! TCP sequence numbers: 32 bits that wrap around.

use std::ops::{Add, AddAssign, Sub};

use smoltcp::wire::TcpSeqNumber;

/// A sequence number (RFC 9293, section 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Seq(pub(crate) u32);

impl Seq {
    pub(crate) fn from_wire(seq: TcpSeqNumber) -> Self {
        Self(seq.0.cast_unsigned())
    }

    pub(crate) fn to_wire(self) -> TcpSeqNumber {
        TcpSeqNumber(self.0.cast_signed())
    }

    /// The distance from `other`; negative if this number is before it.
    pub(crate) fn after(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0).cast_signed()
    }

    /// The number of bytes from `start`; 0 if this number is before it.
    pub(crate) fn since(self, start: Self) -> usize {
        usize::try_from(self.after(start)).unwrap_or(0)
    }

    pub(crate) fn is_after(self, other: Self) -> bool {
        self.after(other) > 0
    }

    pub(crate) fn max(self, other: Self) -> Self {
        if self.is_after(other) { self } else { other }
    }

    pub(crate) fn min(self, other: Self) -> Self {
        if self.is_after(other) { other } else { self }
    }
}

impl Add<usize> for Seq {
    type Output = Self;

    /// Wraps around; lengths are far below 2^31.
    fn add(self, len: usize) -> Self {
        Self(self.0.wrapping_add(len as u32))
    }
}

impl AddAssign<usize> for Seq {
    fn add_assign(&mut self, len: usize) {
        *self = *self + len;
    }
}

impl Sub<usize> for Seq {
    type Output = Self;

    fn sub(self, len: usize) -> Self {
        Self(self.0.wrapping_sub(len as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap_around() {
        let end = Seq(u32::MAX - 1);
        assert_eq!((end + 5).since(end), 5);
        assert!((end + 5).is_after(end) && !end.is_after(end + 5));
        assert_eq!(end.since(end + 5), 0);
        assert_eq!(end.max(end + 5), end + 5);
        assert_eq!(end.min(end + 5), end);
        assert_eq!(Seq::from_wire((end + 5).to_wire()), Seq(3));
    }
}
