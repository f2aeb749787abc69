//! TCP segments of the guest, parsed.

use smoltcp::wire::{TcpOption, TcpPacket};

use super::seq::Seq;

/// A TCP segment (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) seq: Seq,
    pub(crate) ack: Option<Seq>,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    /// The field of the header, not scaled.
    pub(crate) window: u16,
    pub(crate) options: Options,
    pub(crate) payload: &'a [u8],
}

/// The options that are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) mss: Option<u16>,
    pub(crate) window_scale: Option<u8>,
    pub(crate) sack_permitted: bool,
    /// Ranges that the guest has received beyond its acknowledgement.
    pub(crate) sack: [Option<(Seq, Seq)>; 3],
}

impl<'a> Segment<'a> {
    /// None if the segment is malformed.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let packet = TcpPacket::new_checked(bytes).ok()?;
        if packet.src_port() == 0 || packet.dst_port() == 0 {
            return None;
        }
        Some(Self {
            source_port: packet.src_port(),
            destination_port: packet.dst_port(),
            seq: Seq::from_wire(packet.seq_number()),
            ack: packet.ack().then(|| Seq::from_wire(packet.ack_number())),
            syn: packet.syn(),
            fin: packet.fin(),
            rst: packet.rst(),
            window: packet.window_len(),
            options: Options::parse(packet.options()),
            payload: packet.payload(),
        })
    }

    /// The sequence space that the segment takes.
    pub(crate) fn len(&self) -> u32 {
        // A packet has at most 65,535 bytes.
        let payload = u32::try_from(self.payload.len()).unwrap_or(u32::MAX >> 1);
        payload + u32::from(self.syn) + u32::from(self.fin)
    }
}

impl Options {
    /// Parses options up to the first malformed one.
    fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        while !bytes.is_empty() {
            let Ok((rest, option)) = TcpOption::parse(bytes) else { break };
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(mss) => options.mss = Some(mss),
                // RFC 7323, section 2.3: more than 14 counts as 14.
                TcpOption::WindowScale(scale) => options.window_scale = Some(scale.min(14)),
                TcpOption::SackPermitted => options.sack_permitted = true,
                TcpOption::SackRange(ranges) => {
                    options.sack = ranges.map(|range| range.map(|(from, to)| (Seq(from), Seq(to))));
                }
                _ => {}
            }
            bytes = rest;
        }
        options
    }
}
