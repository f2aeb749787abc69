//! A socket in the guest.

use zerocopy::little_endian::U64;

use super::guest::{Guest, Packet};
use crate::virtio::vsock::GUEST_CID;
use crate::virtio::vsock::packet::{HOST_CID, Header, TYPE_STREAM, op};

/// A connection's state in the guest's driver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Socket {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
    pub(super) buf_alloc: u32,
    /// Bytes read by the application.
    pub(super) fwd_cnt: u32,
    pub(super) tx_cnt: u32,
    pub(super) peer_buf_alloc: u32,
    pub(super) peer_fwd_cnt: u32,
}

impl Socket {
    pub(super) fn new(host_port: u32, guest_port: u32) -> Self {
        Self {
            host_port,
            guest_port,
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
            tx_cnt: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
        }
    }

    /// The socket that the host's REQUEST is for.
    pub(super) fn of(request: &Packet) -> Self {
        let mut socket = Self::new(request.header.src_port.get(), request.header.dst_port.get());
        socket.see(request);
        socket
    }

    /// Applies the host's credit in a packet.
    pub(super) fn see(&mut self, packet: &Packet) {
        assert_eq!(packet.header.src_cid.get(), HOST_CID);
        assert_eq!(packet.header.socket_type.get(), TYPE_STREAM);
        assert_eq!(packet.header.src_port.get(), self.host_port);
        assert_eq!(packet.header.dst_port.get(), self.guest_port);
        self.peer_buf_alloc = packet.header.buf_alloc.get();
        self.peer_fwd_cnt = packet.header.fwd_cnt.get();
    }

    pub(super) fn credit(&self) -> usize {
        (self.peer_buf_alloc - self.tx_cnt.wrapping_sub(self.peer_fwd_cnt)) as usize
    }

    pub(super) fn header(&self, op: u16) -> Header {
        Header {
            src_cid: U64::from(u64::from(GUEST_CID)),
            dst_cid: HOST_CID.into(),
            src_port: self.guest_port.into(),
            dst_port: self.host_port.into(),
            socket_type: TYPE_STREAM.into(),
            op: op.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.fwd_cnt.into(),
            ..Header::default()
        }
    }

    pub(super) fn send(&self, guest: &mut Guest, op: u16) {
        guest.send(&self.header(op), &[]);
    }

    pub(super) fn shutdown(&self, guest: &mut Guest, flags: u32) {
        guest.send(&Header { flags: flags.into(), ..self.header(op::SHUTDOWN) }, &[]);
    }

    /// Sends data without regard to credit.
    pub(super) fn write(&mut self, guest: &mut Guest, data: &[u8]) {
        for data in data.chunks(64 * 1024) {
            self.tx_cnt = self.tx_cnt.wrapping_add(data.len() as u32);
            let header = Header { len: (data.len() as u32).into(), ..self.header(op::RW) };
            guest.send(&header, data);
        }
    }

    /// Sends data within credit. Packets that arrive meanwhile must be credit updates.
    pub(super) fn write_all(&mut self, guest: &mut Guest, mut data: &[u8]) {
        while !data.is_empty() {
            let len = data.len().min(self.credit());
            if len == 0 {
                let update = guest.expect(op::CREDIT_UPDATE);
                self.see(&update);
                continue;
            }
            self.write(guest, &data[..len]);
            data = &data[len..];
        }
    }

    /// Reads `len` bytes, and sends the host credit updates.
    pub(super) fn read_exact(&mut self, guest: &mut Guest, len: usize) -> Vec<u8> {
        let mut data = Vec::new();
        let mut last = self.fwd_cnt;
        while data.len() < len {
            let packet = guest.receive();
            self.see(&packet);
            match packet.op() {
                op::RW => {
                    assert!(!packet.data.is_empty());
                    self.fwd_cnt = self.fwd_cnt.wrapping_add(packet.data.len() as u32);
                    data.extend(packet.data);
                    if self.fwd_cnt.wrapping_sub(last) > self.buf_alloc / 2 {
                        last = self.fwd_cnt;
                        self.send(guest, op::CREDIT_UPDATE);
                    }
                }
                op::CREDIT_REQUEST => {
                    last = self.fwd_cnt;
                    self.send(guest, op::CREDIT_UPDATE);
                }
                op::CREDIT_UPDATE => {}
                _ => panic!("{packet:?}"),
            }
        }
        assert_eq!(data.len(), len);
        data
    }
}
