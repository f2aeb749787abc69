//! Commands of the control queue (virtio 1.3, section 5.1.6.5): receive filter and MAC address.

use virtio_bindings::virtio_net::*;

use crate::virtio::chain::Buffers;

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];

/// The most addresses in a filter table. A longer table lets every address of its kind pass.
const TABLE: usize = 64;

/// The longest command in bytes; an address table with thousands of entries fits.
const MAX_COMMAND: usize = 65_536;

/// What the driver has set through the control queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) mac: Mac,
    filter: Filter,
}

/// The destinations that pass, besides the guest's own address and broadcasts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter {
    promiscuous: bool,
    all_multicast: bool,
    unicast: Table,
    multicast: Table,
}

/// Unicast or multicast addresses that pass; `None` for all of the kind.
type Table = Option<Vec<Mac>>;

impl Settings {
    /// Settings before the first command: every frame passes, as a driver need not send commands.
    pub(super) fn new(mac: Mac) -> Self {
        let filter = Filter {
            promiscuous: true,
            all_multicast: false,
            unicast: Some(Vec::new()),
            multicast: Some(Vec::new()),
        };
        Self { mac, filter }
    }

    /// Whether the guest wants frames for `destination`.
    pub(super) fn accepts(&self, destination: Mac) -> bool {
        if self.filter.promiscuous || destination == self.mac || destination == BROADCAST {
            return true;
        }
        let table = match is_multicast(destination) {
            true if self.filter.all_multicast => return true,
            true => &self.filter.multicast,
            false => &self.filter.unicast,
        };
        table.as_ref().is_none_or(|table| table.contains(&destination))
    }

    /// Executes a command. Returns its `ack`.
    pub(super) fn command(&mut self, mut command: Buffers<'_>) -> u8 {
        let done = command.len() <= MAX_COMMAND && self.apply(&mut command).is_some();
        (if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR }) as u8
    }

    /// Executes a command. `None`, and nothing has changed, if it is unknown or malformed.
    fn apply(&mut self, command: &mut Buffers<'_>) -> Option<()> {
        let [class, code] = command.take_front()?;
        match (u32::from(class), u32::from(code)) {
            (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC) => {
                self.filter.promiscuous = switch(command)?;
            }
            (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI) => {
                self.filter.all_multicast = switch(command)?;
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                let (unicast, multicast) = (table(command)?, table(command)?);
                self.filter.unicast = unicast;
                self.filter.multicast = multicast;
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                let mac = command.take_front()?;
                if is_multicast(mac) {
                    return None;
                }
                self.mac = mac;
            }
            _ => return None,
        }
        Some(())
    }
}

pub(super) fn is_multicast(mac: Mac) -> bool {
    let [first, ..] = mac;
    first & 1 != 0
}

/// Reads an on/off value.
fn switch(command: &mut Buffers<'_>) -> Option<bool> {
    let [on] = command.take_front()?;
    Some(on != 0)
}

/// Reads a table of addresses.
fn table(command: &mut Buffers<'_>) -> Option<Table> {
    let count = usize::try_from(u32::from_le_bytes(command.take_front()?)).ok()?;
    if count > command.len() / size_of::<Mac>() {
        return None;
    }
    let mut table = Vec::with_capacity(count.min(TABLE));
    for _ in 0..count {
        let mac = command.take_front()?;
        if table.len() < TABLE {
            table.push(mac);
        }
    }
    Some((count <= TABLE).then_some(table))
}

#[cfg(test)]
mod tests;
