//! The key of a TCP or UDP flow.

use std::net::SocketAddr;

/// The addresses of a flow, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
}
