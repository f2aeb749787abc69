//! TCP: a guest's connections, each spliced to a socket of the host.
//!
//! This is not a general TCP: towards the host the kernel speaks it, and what is spoken to the
//! guest mirrors the state of the host's socket. A SYN is answered when the host's connection
//! stands, the guest's data is acknowledged when the host's socket has taken it (or a bounded
//! buffer has), the host's data is kept until the guest acknowledged it, and ends and resets pass
//! in both directions.
//!
//! - `table`: all flows, by their addresses; segments and events find their flow here
//! - `flow`: one flow: what segments, the socket and the clock do to it
//! - `inbound`: what the guest sends: order, window, what the host has no room for
//! - `outbound`: what the guest receives: what is in flight, retransmission, congestion
//! - `reply`: what the guest is told without a flow: resets, ICMP
//! - `rto`, `gaps`, `time_wait`: retransmission time, data out of order, flows that are over

mod flow;
mod gaps;
mod inbound;
mod outbound;
mod reply;
mod rto;
mod table;
mod time_wait;

pub(crate) use table::Table;
