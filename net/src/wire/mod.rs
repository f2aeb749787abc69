//! Frames and packets: parsed and built.

mod checksum;
pub(crate) mod egress;
mod fragments;
mod parse;
pub(crate) mod protocol;
pub(crate) mod segment;
mod seq;

pub(crate) use egress::{Egress, Unreachable};
pub(crate) use fragments::Reassembly;
pub(crate) use parse::{Frame, Network, Packet};
pub(crate) use segment::Segment;
pub(crate) use seq::Seq;
