//! The device's end of a box's network and the network's, joined: what the device calls a port is a
//! link to the network. Neither crate knows the other; what both say of a
//! frame is in `boxlite-net-frame`. The link is captured if the box's packets are recorded.

use std::any::Any;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};

use boxlite_devices::virtio::net::{self as device, NetBackend, NetPort};
use boxlite_net::link::pcap::{Capture, CaptureLink};
use boxlite_net::{Handle, Link, Offload, OffloadFeatures, Received, Sent};

/// Carries the port of a machine's device to the thread of its box's network, and back.
#[derive(Clone)]
pub(super) struct Backend {
    pub(super) network: Handle,
    pub(super) capture: Option<Capture>,
}

impl NetBackend for Backend {
    fn attach(&mut self, port: NetPort) -> io::Result<()> {
        let link = CaptureLink::new(PortLink(port), self.capture.clone());
        self.network.attach(Box::new(link)).map_err(io::Error::other)
    }

    fn detach(&mut self) -> Option<NetPort> {
        let link: Box<dyn Any> = self.network.detach().ok()??;
        let link = link.downcast::<CaptureLink<PortLink>>().ok()?;
        Some(link.into_inner().0)
    }
}

/// A device's port as a link.
struct PortLink(NetPort);

impl Link for PortLink {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn features(&self) -> OffloadFeatures {
        self.0.features()
    }

    fn woken(&mut self) {
        self.0.woken();
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let Some(mut frame) = self.0.receive().map_err(io::Error::other)? else { return Ok(None) };
        // A partial checksum is the guest's word that nothing has happened to the frame since.
        let checksum_valid = frame.offload().checksum.is_some();
        Ok(Some(Received { len: frame.read(buffer), checksum_valid }))
    }

    fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> io::Result<Sent> {
        match self.0.send(frame, &offload).map_err(io::Error::other)? {
            device::Sent::Full => Ok(Sent::Full),
            // The device counts those that the guest does not want.
            device::Sent::Sent | device::Sent::Dropped => Ok(Sent::Sent),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(io::Error::other)
    }
}
