//! TCP: a guest's connections, each spliced to a socket of the host.
//!
//! This is not a general TCP. Towards the host the kernel implements TCP, and the guest sees the state of
//! the host's socket: a SYN is answered when the host's connection is established, the guest's data is
//! acknowledged when the host's socket or a bounded buffer has taken it, the host's data is kept until the
//! guest acknowledges it, and FIN and RST are forwarded in both directions.
//!
//! - `table`: all flows, by their addresses: finds the flow of a segment, event or timer
//! - `flow`: one flow: handles segments, the socket's events and timers
//! - `inbound`: from the guest to the host: order, window, data for which the host has no room
//! - `outbound`: from the host to the guest: data in flight, retransmission, congestion
//! - `reply`: segments and ICMP errors that belong to no flow
//! - `rto`, `gaps`, `time_wait`: retransmission timeout, data out of order, TIME-WAIT

mod flow;
mod gaps;
mod inbound;
mod outbound;
mod reply;
mod rto;
mod table;
mod time_wait;

pub(crate) use table::Table;
