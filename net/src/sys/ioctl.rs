//! ioctls of TAP devices.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::link::OffloadFeatures;

const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;

/// Attaches `tun`, an open /dev/net/tun, to the TAP device `name`, with a `virtio_net_hdr` in front of
/// every frame.
pub(super) fn attach(tun: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    if name.len() > room || name.bytes().any(|byte| byte == 0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{name}` is not an interface name of at most {room} bytes"),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which lives as long as the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })
}

/// Sets the offloads that the kernel may use in frames that are read. In frames that are written, it
/// accepts whatever a header announces.
pub(super) fn set_offloads(tun: BorrowedFd<'_>, features: OffloadFeatures) -> io::Result<()> {
    let bit = |on, bit| if on { bit } else { 0 };
    let offloads = bit(features.checksum, TUN_F_CSUM)
        | bit(features.checksum && features.tso4, TUN_F_TSO4)
        | bit(features.checksum && features.tso6, TUN_F_TSO6);
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD as _, offloads) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
