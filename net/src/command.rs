//! Commands: what other threads ask of the network's thread.

use std::net::IpAddr;
use std::sync::mpsc::Sender;

use boxlite_net_policy::PublishedPort;

use crate::link::Link;
use crate::ports::Listener;

/// A command of another thread: a handle sends it, the engine carries it out.
pub(crate) enum EngineCommand {
    /// Connects a guest.
    Attach(Box<dyn Link>),
    /// Disconnects the guest and returns its link.
    Detach(Sender<Option<Box<dyn Link>>>),
    /// Accepts on a port that is bound.
    Publish(PublishedPort, Listener),
    /// Closes a published port; the answer says whether there was one.
    Unpublish(PublishedPort, Sender<bool>),
    /// Sets the addresses of the host, which rules must name.
    Own(Vec<IpAddr>),
    /// Ends the loop.
    Stop,
}
