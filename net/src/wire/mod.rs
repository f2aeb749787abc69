//! Frames and packets: taken apart, and put together.

mod checksum;
pub(crate) mod egress;
mod fragments;
mod parse;
pub(crate) mod segment;

pub(crate) use egress::{Egress, Unreachable};
pub(crate) use fragments::Reassembly;
pub(crate) use parse::{Fragment, Frame, Network, Packet};
pub(crate) use segment::Segment;

/// IP protocol numbers.
pub(crate) mod protocol {
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ICMPV6: u8 = 58;
}
