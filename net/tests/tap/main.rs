//! The network against Linux's own TCP/IP: a TAP device in a namespace is the guest, another
//! namespace is the host and the Internet. Needs root, /dev/net/tun and iproute2.

#[cfg(target_os = "linux")]
mod lab;

#[cfg(target_os = "linux")]
mod dns;
#[cfg(target_os = "linux")]
#[cfg(target_os = "linux")]
mod icmp;
#[cfg(target_os = "linux")]
mod loss;
#[cfg(target_os = "linux")]
mod many;
#[cfg(target_os = "linux")]
mod policy;
mod ports;
#[cfg(target_os = "linux")]
mod tcp;
#[cfg(target_os = "linux")]
mod tools;
#[cfg(target_os = "linux")]
mod udp;
#[cfg(target_os = "linux")]
mod wire;
