//! Connects the VM's network device with the box's network: the device's port is the network's link. Neither crate
//! depends on the other; the types for a frame that both use are in `boxlite-net-frame`. If the box's packets are
//! captured, the link is wrapped for that.

use std::any::Any;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};

use boxlite_devices::virtio::net::{self as device, NetBackend, NetPort};
use boxlite_net::link::pcap::{Capture, CaptureLink};
use boxlite_net::{Handle, Link, Offload, OffloadFeatures, Received, Sent};

/// Moves the port of a VM's device to the thread of its box's network, and back.
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
        // A partial checksum means that the frame has not left the guest's memory, so its content is intact.
        let checksum_valid = frame.offload().checksum.is_some();
        Ok(Some(Received { len: frame.read(buffer), checksum_valid }))
    }

    fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> io::Result<Sent> {
        match self.0.send(frame, &offload).map_err(io::Error::other)? {
            device::Sent::Full => Ok(Sent::Full),
            // The device counts the frames that it drops.
            device::Sent::Sent | device::Sent::Dropped => Ok(Sent::Sent),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(io::Error::other)
    }
}
